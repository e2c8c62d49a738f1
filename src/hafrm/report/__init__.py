"""The page: one self-contained HTML file that shows an evaluation, its intervals, its plots and its worst mistakes."""
