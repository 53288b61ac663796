"""The model as evaluation harnesses know it: lmms-eval and VLMEvalKit. The tasks are in `eval/suites/`."""
