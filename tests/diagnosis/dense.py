"""Equation (1) and the figures of a diagnosis once more, in NumPy, without a line of the library."""

import numpy as np


def array(tensor):
    return tensor.detach().cpu().double().numpy()


def effective(weight, outward, gram, inward, a, b, common, specific, alpha):
    """(W_eff, C, common term, specific term) of NumPy arrays; a, b and specific may be None."""
    update = outward @ gram @ inward.T
    shared = columns(weight + alpha * update) * common[None, :]
    own = np.zeros_like(weight)
    if a is not None:
        own = columns(weight + alpha * (a @ b).T) * specific[None, :]
    return shared + own, update, shared, own


def columns(matrix):
    return np.stack([column / max(np.sqrt((column**2).sum()), 1e-5) for column in matrix.T], axis=1)


def new_content(term, weight):
    """||term - W diag(s)|| / ||W|| with the best s, found by least squares column by column."""
    rest = [
        column - base * np.linalg.lstsq(base[:, None], column, rcond=None)[0][0]
        for column, base in zip(term.T, weight.T, strict=True)
    ]
    return np.linalg.norm(np.stack(rest)) / np.linalg.norm(weight)


def entropy_rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    if not values.any():
        return 0.0
    shares = [value / values.sum() for value in values if value > 0]
    return float(np.exp(-sum(share * np.log(share) for share in shares)))


def expected(model, name, start):
    """The figures of one projection of a patched model, by field; `start` has every adapter tensor before training."""
    import mora

    now = {key: array(value) for key, value in mora.adapter_state_dict(model).items()}
    before = {key: array(value) for key, value in start.items()}
    projection = dict(model.mora.projections())[name]
    place = next(at for at, pair in enumerate(model.mora.pairs)
                 if any(name.startswith(f"{one.modality}.{one.layer}.") for one in pair.values()))  # fmt: skip
    weight, modality = array(projection.weight), name.split(".")[0]

    def built(tensors):
        common = {key.split(".")[2]: value for key, value in tensors.items() if key.startswith(f"common.{place}.")}
        rows, size = weight.shape

        def factor(width):
            return next(common[key] for key in (f"{modality}_{width}", modality) if key in common
                        and len(common[key]) == width)  # fmt: skip

        others = [key for key in common if key != modality and "_" not in key] or [modality]
        gram = sum(common[key].T @ common[key] for key in others)
        if model.mora.config.variant == "no-gram":
            gram = np.eye(model.mora.config.shared_rank)
        if model.mora.config.variant == "fixed-gram":
            gram = np.eye(len(gram)) * sum(len(common[key]) for key in others) / len(gram)
        own = [tensors.get(f"{name}.{kind}") for kind in ("specific_a", "specific_b")]
        magnitudes = [tensors.get(f"{name}.{kind}") for kind in ("common_magnitude", "specific_magnitude")]
        return effective(weight, factor(rows), gram, factor(size), *own, *magnitudes, projection.alpha), gram

    (w_now, c_now, shared, own), gram = built(now)
    (w_start, c_start, _, _), gram_start = built(before)
    norm, size = np.linalg.norm(weight), np.linalg.norm
    specific = now.get(f"{name}.specific_magnitude")
    return {
        "start_move": size(w_start - weight) / norm,
        "learned_move": size(w_now - w_start) / norm,
        "total_move": size(w_now - weight) / norm,
        "common_new": new_content(shared, weight),
        "specific_new": None if specific is None else new_content(own, weight),
        "start_new": new_content(w_start, weight),
        "common_moved": size(c_now - c_start) / size(c_start),
        "common_strength": projection.alpha * size(c_now) / norm,
        "common_negative": np.mean(now[f"{name}.common_magnitude"] < 0),
        "specific_negative": None if specific is None else np.mean(specific < 0),
        "effective_rank": entropy_rank(w_now - weight),
        "learned_rank": entropy_rank(w_now - w_start),
    }, (gram, gram_start)
