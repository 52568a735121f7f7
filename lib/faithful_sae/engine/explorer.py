"""The features of a profile as a page to open in a browser: `make explorer`."""

from pathlib import Path

from faithful_sae.features.explorer.page import write_explorer
from faithful_sae.features.index import FeatureError
from faithful_sae.paper.links import indexed
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import writer
from faithful_sae.stages.s09_explore_features import judged_indexes


def write(profile: str) -> Path:
    """Write the page of all indices of a profile, beside its artefacts; its index.html. Where
    notebook 12 has been run, judges' scores are in it.

    Args:
        profile: a folder of parameter files, or the name of one in params/.

    Raises:
        ParamsError: as load_profile.
        FeatureError: no index yet, or a damaged one.
    """
    runs = load_profile(profile)
    artifacts = runs[0].artifacts.parent
    indices = [index for run in runs if indexed(run) for index in judged_indexes(run)]
    if not indices:
        raise FeatureError(
            f"{artifacts}: no index of features yet: run notebooks/{writer('features').name} on "
            f"this profile first (make paper PROFILE={artifacts.name})"
        )
    write_explorer(artifacts / "explorer", indices)
    page = artifacts / "explorer" / "index.html"
    print(f"written: {page} ({len(indices)} sets of features)")
    return page
