"""The doctor's checks of what may crash or hang, kernels and collectives: they run in ranks."""
# ruff: noqa: PLC0415

from __future__ import annotations

from contextlib import nullcontext

from blockshock.doctor.finding import Finding, Look

RANK_SECONDS = 120


def check_kernels(name: str, device: str, gpus: int, look: Look) -> Finding:
    """Look at each kernel, on a rank that is started anew after a crash; one that is sparse has to be right."""
    from blockshock.kernels import KERNELS
    from blockshock.ranks import spawn

    right = []
    with spawn(1, device, RANK_SECONDS) as ranks:

        def check_kernel(*call: str) -> Finding:
            return ranks.run(multiply, *call)[0]

        for kernel in KERNELS.names():
            if gpus and device not in KERNELS.get(kernel).device_types:
                continue  # the turn of the GPU says more
            finding = look(f"kernel {kernel}", "choose other --kernels", check_kernel, kernel, device)
            if finding.state == "ok" and KERNELS.get(kernel).sparse:
                right.append(kernel)
    if not right:
        return Finding(name, "broken", "no sparse kernel multiplies right", "see the line of each kernel")
    return Finding(name, "ok", f"sparse and right: {', '.join(right)}")


def multiply(name: str, kernel: str, device: str) -> Finding:
    """Multiply by both halves of a small W and compare the sum with float64; a rank calls it."""
    import torch

    from blockshock.kernels import QuantisedWeights, build_format, build_kernel, row_scales
    from blockshock.matrices import GeneratedWeights, Piece, WeightSource, pattern_mask
    from blockshock.measure import FLOAT32, Accuracy, compare

    source, mask = GeneratedWeights(256, 256, torch.bfloat16, device), pattern_mask("1100", 256, 256, device)
    x_BK, chosen = source.rows(0, 16), build_kernel(kernel)
    if reason := chosen.unavailable(source.device, source.dtype):
        return Finding(name, "n.a.", reason)
    halves = [Piece(source, slice(0, 256), one) for one in (mask, mask.complement())]
    right: WeightSource = source
    format, right_BK, sums = None if chosen.plain else build_format(chosen.formats[0]), x_BK, FLOAT32
    if format is None:
        kernels = [chosen.resolve(half, len(x_BK), False, lambda seconds: seconds) for half in halves]
        packings = [kernel.pack(half) for kernel, half in zip(kernels, halves, strict=True)]
    else:
        scale_N = row_scales(source.rows, 256, 256, format, source.device)  # of both: what they store adds up too
        packings = [chosen.pack_quantised(half, None, format, scale_N) for half in halves]
        right_BK, right, sums = format.represented(x_BK), QuantisedWeights(source, format), packings[0].sums
    first, second = (packed(x_BK) for packed in packings)
    found = compare(first + second, right_BK, right, 2, 0, 1, sums)
    accuracy = Accuracy.of(found, roundings=2)
    if failure := accuracy.failure():
        raise ArithmeticError(failure)
    return Finding(name, "ok", f"right on {device}, {accuracy.error_ratio:.2f} x dense's error")


def check_ranks(name: str, device: str, gpus: int) -> Finding:
    from blockshock.ranks import spawn

    if device == "cuda" and not gpus:
        return Finding(name, "n.a.", "needs a GPU")
    size = 1 if device == "cuda" and gpus == 1 else 2
    with spawn(size, device, RANK_SECONDS) as ranks:
        sums = ranks.run(sum_of_numbers, device)
    if sums != [size * (size + 1) // 2] * size:
        raise ArithmeticError(f"an all-reduce of {' and '.join(map(str, range(1, size + 1)))} gives {sums}")
    if size == 1:
        return Finding(name, "ok", "1 rank; what spreads over GPUs, as tensor parallelism does, takes 2")
    return Finding(name, "ok", "2 ranks, all-reduce right")


def check_internals(name: str, device: str, look: Look) -> Finding:
    """Try each, those of a GPU on a rank, for they may crash; one that is not what it was has a line of its own."""
    from blockshock.machine import INTERNALS
    from blockshock.ranks import spawn

    tried, broken = 0, 0
    with spawn(1, device, RANK_SECONDS) if device == "cuda" else nullcontext() as ranks:
        for part, internal in INTERNALS.items():
            try:
                lacks = ranks.run(try_internal, part, device)[0] if ranks else try_internal(part, device)
                tried += not lacks
            except Exception as error:
                broken += 1
                look(part, f"take another torch: {internal.without}", raise_again, error)
    if broken:
        return Finding(name, "broken", f"{broken} of {len(INTERNALS)} are not what they were", "see the line of each")
    return Finding(name, "ok", f"{tried} of {len(INTERNALS)} tried, all do what they did")


def try_internal(part: str, device: str) -> str | None:
    """Try one of torch's private parts; a rank calls it. Why it cannot be tried here, or None."""
    from blockshock.machine import INTERNALS

    internal = INTERNALS[part]
    if internal.device == "cuda" and device != "cuda":
        return "needs a GPU"
    lacks = internal.lacks()
    if not lacks:
        internal.attempt()
    return lacks


def raise_again(name: str, error: Exception) -> Finding:
    raise error


def sum_of_numbers(device: str) -> int:
    """The sum of the ranks' numbers, counted from 1; all ranks call it together."""
    import torch

    number = torch.tensor(torch.distributed.get_rank() + 1, device=device)
    torch.distributed.all_reduce(number)
    return int(number)
