"""The shapes world's exact grader as a benchmark: pictures, answers, films and edits, a file each."""
