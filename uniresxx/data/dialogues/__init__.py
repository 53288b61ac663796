"""Conversations that teach: their wording, those composed of annotations, and how a training row shows one."""
