"""Records of labelled images."""

import numpy as np

from c2fmae.labelling.manifest import make_record
from c2fmae.labelling.protocol import LabelledObject


def test_ids_of_objects_are_those_of_the_stored_map() -> None:
    objects = [LabelledObject(id_, 1.0, None, None, (0, 0, 1, 1), 1) for id_ in (254, 65535, 256)]
    record = make_record((1, 3), {"instance": np.array([[254, 65535, 256]])}, objects, {}, "digest")
    assert [each["id"] for each in record["instances"]] == [254, 255, 256]
