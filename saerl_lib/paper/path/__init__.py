"""The paper's run step by step: data, encode, plan, measure, train, evaluate, report (`python -m saerl_lib paper STEP`).

Every step leaves stages that are found again by their content, so that each can run alone, on the machine that suits it.
The modules follow the data: options, home, places, data, encode, features, fit, plan, train, generate, evaluate, report, run.
"""
