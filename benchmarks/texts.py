"""The words of docs/benchmarks.md that stand between its tables."""

INTRODUCTION = """# Benchmarks

Written by `pathnet bench`; do not edit by hand.

Every row is one run in which all columns take turns on the same weights and images, in float32,
after a warm-up. Times are medians in milliseconds. A ratio is the time of the other over the time
of pathnet, taken round by round and given as median [first quartile, third quartile]: above 1
pathnet is faster, below 1 slower. The eager columns are the plain `nn.Module` nets of
`benchmarks/eager.py`. In a path-restricted step (23 of 54 blocks FULL, 31 FORWARD) eager computes
the 31 residual branches under `no_grad`; in an effective-path step (23 FULL, 31 OFF) it skips them
in Python. In a DropPath step each image drops each block at a rate of 0.2; eager multiplies the
branch by a mask of the images, as torchvision's `stochastic_depth` does, or with `bn="active"`
computes the branch of the kept images alone. "All blocks" is eager channels-last training every
block. A training step is zero_grad,
forward, loss, backward and SGD with momentum. An input gradient is the gradient of the loss to the
images alone, in `eval()`, with parameters that require none. "-" means: not run in this case. A row
stands here only if pathnet's outputs and gradients agreed with the plain net in float64 just
before.

"Ran" is what pathnet chose by itself: blocks per backend as `pathnet.explain` counts them, then the
calls of its ops that one step really made, and the convolutions that PyTorch computed outside of
them.

The FMA floor is multiply-adds / ceiling, the byte floor bytes / ceiling of DRAM, both in
milliseconds. Multiply-adds are those of Winograd F(4x4, 3x3) where it applies, without its
transforms (36 for 16 outputs of a pair of channels, instead of 144), else those of direct
convolution; the bf16 row has those of float32. Bytes are those that batch statistics force through
memory, or else images, weights and output (`benchmarks/bounds.py`); what stays in a large cache
may pass this floor. "Reached" is the higher floor over pathnet's time.
"""
RATIOS = "Compare ratios, not milliseconds: other work on the machine leaves them nearly intact."
MEMORY = """Kept: the distinct storages that autograd saves for the backward, without parameters.
Peak: by how much the resident memory of a fresh process grows at most in its first step, scratch of
libraries and gradients of weights included. Below 1 pathnet needs less.
"""
BLOCKS = """What three neighbours with identity shortcuts keep together under one gate, between FULL blocks, in T,
the bytes of one activation of their stage: the difference to the same net without them.
"""
CEILINGS = """Measured by `benchmarks/ceilings.cpp`: multiply-adds in registers, and bytes a second of a pass
through buffers that lie in each level; "stream" writes by non-temporal stores.
"""
PREDICTIONS = """Top-1 on real images with trained weights, and errors of the logits against eager float64.
"""
STUDIES = """Whole experiments on ResNet-110 with 32x32 images, in seconds. Lesions are the whole net and its 54 single
deletions, pairs all 1,431 double ones, paths the gradients at the image along drawn paths, the
spectrum all of them exactly. A plain loop costs the same for every entry, so it ran some and was
multiplied; what was measured and what follows from it stands in the second column.
"""
MEASURE = """## Measure it yourself

```sh
pathnet bench                                  # all rows with 1 and 2 threads; writes this page
pathnet bench --quick                          # tiny sizes, to see that all works
pathnet bench --only eval,train --threads 1    # rows by name, printed alone; a wrong name lists them all
pathnet bench --only 'preact-*' --results figures --no-compile
pathnet bench --only lesions,paths --rounds 1  # whole experiments
PATHNET_CPU_ISA=avx2 pathnet bench --only eval --results figures
pathnet bench --only predictions --weights 32=resnet32.th --images cifar10.npz --results figures
python -m benchmarks.report figures/*.json --out docs/benchmarks.md
```

The last line joins what several commands measured: of a row that was measured twice the later one stands.
"""
