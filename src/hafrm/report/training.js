"use strict";
// Say that the page is old: a run that is killed can't.
(() => {
  const written = document.getElementById("written");
  const minutes = Math.floor((Date.now() - Date.parse(written.dateTime)) / 60000);
  if (minutes >= 3) {
    document.getElementById("old").textContent =
      `No step has been logged for ${minutes} minutes: steps are long, or the run was killed. ` +
      "The same command resumes it.";
  }
})();
