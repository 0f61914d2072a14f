"""Full-size recipes, two steps a stage, on a CPU: `make rehearse`, `make rehearse RECIPE=wan`.

What breaks at full size breaks on shapes, memory and counts, and those need no GPU. A rehearsal
runs a recipe as `dvc exp run` does, with its own networks (random weights where no file can be had)
on data of the real format that it makes, in a copy of the repository. What is cut down stands in
`rehearse.plans`, with the reason, and nowhere else.
"""
