"""Judges that are models: they write what a latent responds to, and say where it does.

prompts.py    what they are asked, in words
answers.py    their answers on disk, so that none is asked for twice
judge.py      LanguageJudge: a judge made of any model that answers prompts, calls counted
local.py      an instruct model in this process
endpoint.py   a server that speaks OpenAI's protocol
embedding.py  TextJudge: a sentence encoder compares an explanation with a text
"""
