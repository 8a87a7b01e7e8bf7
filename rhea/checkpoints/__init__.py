"""Models on disk: released Emu3 folders, transformers' and ours, read, written, described and converted."""
