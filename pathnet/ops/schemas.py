"""Every op of the library, one schema each: the table of contents.

C++ and CUDA only implement them, so that each op, its fake and its reference exist without a compiler.
"""

from __future__ import annotations

import torch

from pathnet import extension

SCHEMA_VERSION = 12  # compiled into the extension too; raise it with every change of a schema below

SCHEMAS = (
    # A stage of gated blocks in evaluation, batch norm folded. csrc/cpu/stage_eval.cpp
    # gates int8 and scales float32 [blocks] or [N, blocks]; blocks: form, stride, shortcut, pad_before for each.
    # precision of the products of 3x3 convolutions: float32 or bf16.
    "stage_eval(Tensor x, Tensor gates, Tensor scales, Tensor[] tensors, int[] blocks, float[] eps, str precision)"
    " -> Tensor",
    # A run of post-activation blocks in evaluation by Triton, in the dtypes of its training. kernels/stage_eval.py
    # norms: weight, bias, mean and variance of each.
    "stage_eval_triton(Tensor x, Tensor? skip, Tensor[] weights, Tensor[] norms, int[] strides, float[] scales,"
    " float[] eps, str precision) -> Tensor",
    # The same where gates differ from image to image, int8 [N, blocks] on the CPU; no stride. kernels/rows_eval.py
    "rows_eval_triton(Tensor x, Tensor gates, Tensor[] weights, Tensor[] norms, float[] scales, float[] eps,"
    " str precision) -> Tensor",
    # A whole CIFAR net in evaluation, image to logits, a thread block for each image and mask. csrc/cuda/net_eval.cu
    # weights, first_slice, vectors, classifier: what pathnet/ops/net_eval_pack.py makes, on x's device. gates int8,
    # order int32 and scales float32 [masks, blocks], a column a position: row r of the logits is image r / repeat under
    # mask r % masks. pad_before: zero channels before those of x, in both strided blocks.
    "net_eval(Tensor x, Tensor weights, Tensor first_slice, Tensor vectors, Tensor classifier, Tensor gates,"
    " Tensor order, Tensor scales, int repeat, int[] stage_blocks, int shortcut_slices, int[] pad_before, bool preact)"
    " -> Tensor",
    # A run of gated blocks in training, float32, one gate a block for the whole batch. csrc/cpu/stage_train_fwd.cpp
    # blocks: form (0 basic, 1 pre-activation, 2 and 3 their bottlenecks), stride and gate for each; norm_flags: by
    # batch statistics, running ones move; norm_constants: eps, momentum. running (mean and variance) moves in place.
    # `skip` is h(x) of the first block, None for the identity. Or that shortcut is a 1x1 convolution, with a batch norm
    # in a post-activation run: then it stands behind the blocks, as one of form 4. rows: int64, the images that run,
    # None for all; the others pass as they are. scales: one a block, or [blocks, images that run] in a row; none for
    # that shortcut. What is saved: csrc/cpu/stage_train_kept.cpp
    "stage_train_fwd(Tensor x, Tensor? skip, Tensor? rows, Tensor[] weights, Tensor[] norms, Tensor(a!)[] running,"
    " int[] blocks, float[] scales, bool[] norm_flags, float[] norm_constants) -> (Tensor y, Tensor[] saved)",
    # A gradient for each True of `needs`: x, skip, weights, norms. csrc/cpu/stage_train_bwd.cpp
    "stage_train_bwd(Tensor grad_y, Tensor x, Tensor? rows, Tensor[] saved, Tensor[] weights, Tensor[] norms,"
    " Tensor[] running, int[] blocks, float[] scales, bool[] norm_flags, float[] norm_constants, bool has_skip,"
    " bool[] needs) -> Tensor[]",
    # The same by Triton: blocks of one form, float32 (products in `precision`: tf32 or ieee), float16 or bfloat16;
    # `running` has the counter of batches too. kernels/stage_train_fwd.py
    "stage_train_triton_fwd(Tensor x, Tensor? skip, Tensor[] weights, Tensor[] norms, Tensor(a!)[] running,"
    " int[] blocks, float[] scales, bool[] norm_flags, float[] norm_constants, str precision)"
    " -> (Tensor y, Tensor[] saved)",
    # x, skip and all weights in a row, as `needs` asks, then those of the norms, [norms, 2, C].
    # kernels/stage_train_bwd.py
    "stage_train_triton_bwd(Tensor grad_y, Tensor x, Tensor[] saved, Tensor[] weights, Tensor[] norms, int[] blocks,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision, bool has_skip, bool[] needs)"
    " -> Tensor[]",
    # The same where gates differ from image to image, [N, blocks] in a row; no stride. kernels/rows_train_fwd.py
    "rows_train_triton_fwd(Tensor x, Tensor[] weights, Tensor[] norms, Tensor(a!)[] running, int[] gates,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision) -> (Tensor y, Tensor[] saved)",
    # x and all weights in a row, as `needs` asks, then those of the norms. kernels/rows_train_bwd.py
    "rows_train_triton_bwd(Tensor grad_y, Tensor x, Tensor[] saved, Tensor[] weights, Tensor[] norms, int[] gates,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision, bool[] needs) -> Tensor[]",
    # The same where gates (OFF, FULL, FORWARD) are int8 [blocks] on the device. kernels/masked_train.py
    "masked_train_triton_fwd(Tensor x, Tensor gates, Tensor[] weights, Tensor[] norms, Tensor(a!)[] running,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision) -> (Tensor y, Tensor[] saved)",
    # x, the weights that `needs` asks for in a row, and the norms: zeros where a block is not FULL.
    "masked_train_triton_bwd(Tensor grad_y, Tensor x, Tensor gates, Tensor[] saved, Tensor[] weights, Tensor[] norms,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision, bool[] needs) -> Tensor[]",
    # The same by CUDA C++: basic or pre-activation blocks of stride 1 that keep 16, 32 or 64 channels.
    # csrc/cuda/stage_train.cu
    "stage_train_cuda_fwd(Tensor x, Tensor? skip, Tensor[] weights, Tensor[] norms, Tensor(a!)[] running,"
    " int[] blocks, float[] scales, bool[] norm_flags, float[] norm_constants, str precision)"
    " -> (Tensor y, Tensor[] saved)",
    "stage_train_cuda_bwd(Tensor grad_y, Tensor x, Tensor[] saved, Tensor[] weights, Tensor[] norms, int[] blocks,"
    " float[] scales, bool[] norm_flags, float[] norm_constants, str precision, bool has_skip, bool[] needs)"
    " -> Tensor[]",
    # What these launch: pass, and bytes read, written, requested and of partial sums, for each launch.
    # pathnet/ops/stage_train_cuda_count.py
    "stage_train_cuda_count(int[] numbers, int itemsize, bool backward) -> int[]",
    # Blocks in evaluation whose input alone gets a gradient, one form of basic or pre-activation blocks that keep the
    # shape; arguments as for stage_eval. masks: int16 [2 blocks, N, C / 16, H, W], a bit a channel, where the values
    # behind the two ReLUs of each block are above 0. csrc/cpu/input_grad.cpp
    "input_grad_fwd(Tensor x, Tensor scales, Tensor[] tensors, int[] blocks, float[] eps) -> (Tensor y, Tensor masks)",
    # The gradient of x alone; grad_y [k N, C, H, W] may hold several.
    "input_grad_bwd(Tensor grad_y, Tensor masks, Tensor scales, Tensor[] tensors, int[] blocks, float[] eps)"
    " -> Tensor[]",
    # Batch norm, ReLU and, if `pool`, 3x3 max pooling of stride 2, float32, u and y in channels_last.
    # norm: weight, bias; running: mean, variance, which moves in place if `update`; winners: a byte a value of a
    # pooled y, else empty. csrc/cpu/stem_train.cpp
    "stem_train_fwd(Tensor u, Tensor[] norm, Tensor(a!)[] running, bool batch_stats, bool update, float eps,"
    " float momentum, bool pool) -> (Tensor y, Tensor winners, Tensor state)",
    # The gradients of weight and bias, and that of u if it is needed.
    "stem_train_bwd(Tensor grad_y, Tensor u, Tensor winners, Tensor state, Tensor weight, bool batch_stats,"
    " bool needs_u) -> Tensor[]",
    # ReLU(norm(7x7 convolution of stride 2)) and 3x3 max pooling of stride 2 in evaluation, float32.
    # y is in channels_last. norm: weight, bias, mean, variance. csrc/cpu/stem_eval.cpp
    "stem_eval(Tensor x, Tensor weight, Tensor[] norm, float eps) -> Tensor",
    # A gradient [k N, C, H, W] back along one path: through 3x3 convolutions of stride 1, weights [C, C, 3, 3] as the
    # backward reads them, and masks, one before the first and one behind each, int16 [N, C / 16, H, W], a bit a
    # channel. csrc/cpu/path_bwd.cpp
    "path_bwd(Tensor gradient, Tensor[] weights, Tensor[] masks) -> Tensor",
    # The same by Triton, gradient in channels_last, float32 products in `precision`. kernels/path_bwd.py
    "path_bwd_triton(Tensor gradient, Tensor[] weights, Tensor[] masks, str precision) -> Tensor",
    # The compute capability of the kernel that runs on x's GPU, for the doctor. csrc/cuda/probe.cu
    "probe(Tensor x) -> Tensor",
    # A stage whose gates are known only when the graph runs, by the reference. pathnet/ops/stage_traced.py
    "stage_traced_fwd(Tensor x, Tensor gates, Tensor multiplier, Tensor[] params, Tensor(a!)[] moving, Tensor[] fixed,"
    " int[] layout, float[] constants, bool update, bool mask_rows, str autocast) -> Tensor",
    "stage_traced_bwd(Tensor grad_y, Tensor x, Tensor gates, Tensor multiplier, Tensor? present, Tensor[] params,"
    " Tensor[] fixed, int[] layout, float[] constants, bool[] needs, bool mask_rows, str autocast, bool zero_unused)"
    " -> Tensor[]",
    # One draw of a sampler; moves the step counter. pathnet/ops/draw.py
    "draw(Tensor(a!) step, str sampler, int batch, int blocks) -> (Tensor gates, Tensor multiplier, Tensor present)",
)

library = torch.library.Library("pathnet", "DEF")
for _schema in SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

extension.load(SCHEMA_VERSION)  # the implementations of what was just defined
