"""The doors: each picture, video, weight file and output of library, nodes and training goes through one.

A door opens regular files only, knows the formats that are meant, holds what a file claims against what is
there before it takes memory for it, and says what is wrong in one sentence. Nothing else opens such files.
"""
