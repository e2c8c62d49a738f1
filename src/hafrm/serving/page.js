"use strict";

// Texts enter the page only as text nodes.
const form = document.getElementById("form");
const show = (id, text) => {
  document.getElementById(id).textContent = text;
};

function turns(first, second) {
  const prompt = [{ role: "user", content: form.elements.prompt.value }];
  return [first, second].map((name) => ({
    prompt,
    response: [{ role: "assistant", content: form.elements[name].value }],
  }));
}

async function ask() {
  const headers = { "Content-Type": "application/json" };
  if (form.elements.key.value) {
    headers.Authorization = `Bearer ${form.elements.key.value}`;
  }
  const body = JSON.stringify({ conversations: turns("first", "second") });
  const answer = await fetch("/v1/rewards", { method: "POST", headers, body });
  const found = await answer.json();
  if (!answer.ok) {
    throw new Error(found.error.message);
  }
  return found;
}

function verdict([first, second]) {
  if (first.reward === null || second.reward === null) {
    return "One response has no reward, so there is nothing to compare.";
  }
  const probability = 1 / (1 + Math.exp(second.reward - first.reward));
  return `Probability that response 1 is the better one: ${(100 * probability).toFixed(1)}%`;
}

function present(found) {
  show("model", found.model);
  found.rewards.forEach((item, i) => {
    show(`reward-${i + 1}`, item.reward === null ? `none (${item.unscored})` : item.reward.toFixed(4));
    show(`tokens-${i + 1}`, item.truncated ? `${item.tokens}, cut` : String(item.tokens));
  });
  show("verdict", verdict(found.rewards));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [result, problem, button] = [
    document.getElementById("result"),
    document.getElementById("problem"),
    form.querySelector("button"),
  ];
  button.disabled = true;
  result.hidden = problem.hidden = true;
  try {
    present(await ask());
    result.hidden = false;
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  } finally {
    button.disabled = false;
  }
});
