"""The way from stored features to a batch plan at any number of samples, with memory bounded by a block (ours).

Features are read from disk block by block, k-means takes mini-batches in one pass, clusters and difficulty scores come in a
second, and the curriculum is an external sort. The same clusters and scores give the same plan as `saerl_lib.plan.build_plan`.
`python -m saerl_lib scale` prints what 100 million samples would take and measures this path on fewer.
"""
