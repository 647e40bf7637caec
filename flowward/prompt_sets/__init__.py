"""Prompt sets that are made by rules, and how those of files are read. `flowward.prompts.load` is the way to them.

geneval.py: objects, counts, colours, places, with the metadata that the `geneval` rewards read.
ocr.py: signs, posters and labels, with the text to show.
drawbench.py: a small set in the categories of DrawBench.
files.py: text, JSON lines, Parquet, and data sets of the Hugging Face hub.
picks.py: which of many combinations a set takes, for every machine and version alike.
"""
