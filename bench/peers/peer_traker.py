"""TRAK's scores for what nftk reproduce counterfactual left, in the environment of requirements-traker.txt.

python bench/peers/peer_traker.py RUNS/counterfactual/networks-....pt writes networks-...-trak.pt beside it.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from trak import TRAKer

# of the projection; and what is added to the Gram matrix's diagonal, in mean squared lengths of a projected gradient
DIMS, SHARES = (128, 512, 2048), (0.0, 0.1, 1.0, 10.0)


def scores(given, dim, shares, folder):
    """Scores (groups, n_test, n_train) for each share; a group of networks is an ensemble."""
    models, (x, y), (x_test, y_test) = given["models"], given["train"], given["test"]
    traker = TRAKer(
        model=models[0], task="image_classification", train_set_size=len(x), save_dir=folder, device="cpu",
        proj_dim=dim, use_half_precision=False, logging_level=logging.ERROR,
    )  # fmt: skip
    # finalize_features frees it at each call, and fails at the second
    traker.projector.free_memory = lambda: None
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    lengths = []
    for number, state in enumerate(states):
        traker.load_checkpoint(state, model_id=number)
        traker.featurize((x, y), num_samples=len(x))
        gradients = torch.as_tensor(traker.saver.current_store["grads"]).clone()
        lengths.append(float(gradients.square().sum(1).mean()))
    found = {}
    for share in shares:
        for number, length in enumerate(lengths):
            # the same gradients again, with another ridge
            traker.saver.model_ids[number]["is_finalized"] = 0
            traker.score_computer.lambda_reg = share * length
            traker.finalize_features(model_ids=[number])
        if not found:
            for number, state in enumerate(states):
                traker.start_scoring_checkpoint("test", state, model_id=number, num_targets=len(x_test))
                traker.score((x_test, y_test), num_samples=len(x_test))
        # every call writes into one file
        said = [torch.tensor(traker.finalize_scores("test", model_ids=group)).T for group in given["groups"]]
        found[f"{dim} {share:g}"] = torch.stack(said)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="networks-....pt")
    parser.add_argument("--dims", type=int, nargs="*", default=DIMS)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    asked = parser.parse_args()
    given = torch.load(asked.file, weights_only=False)
    found = {}
    for dim in asked.dims:
        with tempfile.TemporaryDirectory() as folder:
            found |= scores(given, dim, asked.shares, folder)
        print(f"projected to {dim}", flush=True)
    path = asked.file.with_name(f"{asked.file.stem}-trak.pt")
    temporary = path.with_suffix(".tmp")
    torch.save(found, temporary)
    temporary.replace(path)
    print(path)


if __name__ == "__main__":
    main()
