"""`c2fmae data check --as` as its user meets it."""

from pathlib import Path

import pytest

from tests.cli.test_data import run
from tests.data.suites.official_layouts import IN_BOTH, class_files, grid_files, write_as_folder, write_as_tar

pytestmark = pytest.mark.once


def test_what_is_odd_is_listed_and_ends_with_1(tmp_path: Path) -> None:
    write_as_tar(tmp_path / "r.tar", class_files("imagenet-r/", IN_BOTH))
    write_as_folder(tmp_path / "own", class_files("", ("cat", "dog")))
    write_as_folder(tmp_path / "c", grid_files(["fog"], IN_BOTH))
    results, errors = run(
        "data check r.tar --as r",
        "data check own --as custom",
        "data check c --as c",
        "data check own --as imagenet-x",
        "data check own --as custom --workers 2",
        cwd=tmp_path,
    )
    assert results[0] == (
        1,
        [
            "odd: 198 of 200 class directories missing: n01443537, n01484850, n01494475, n01498041, n01514859, …",
            "odd: 4 of 30,000 images: the set is incomplete",
            "imagenet-r: 4 images of 2 classes, 4 of them decoded",
            "2 odd things",
            "next: mend that, or go on with it: c2fmae eval robustness MODEL --imagenet-r r.tar",
        ],
    )
    assert results[1] == (
        0,
        [
            "custom: 4 images of 2 classes, 4 of them decoded",
            "nothing odd",
            "next: c2fmae eval robustness MODEL --custom NAME=own",
        ],
    )
    code, said = results[2]
    assert code == 1
    assert said[0].startswith("odd: 14 of the 15 corruptions missing: gaussian_noise, shot_noise,")
    assert said[-1].endswith("c2fmae eval robustness MODEL --imagenet-c c")
    assert [code for code, _ in results[3:]] == [2, 2]
    assert "no suite named 'imagenet-x'. Did you mean 'imagenet-r'?" in errors
    text = "--as: looks at names, counts and a few photos, so no other option goes with it. Leave them out"
    assert text in errors
