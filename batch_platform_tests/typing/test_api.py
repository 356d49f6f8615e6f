import importlib
import subprocess
import sys
from typing import get_args

import pytest

import batch_platform
from batch_platform import BatchInference
from batch_platform.declaration.notation import Block
from batch_platform.declaration.spec import PipelineSpec
from batch_platform_tests.typing.api import declared_by_classes


@pytest.mark.parametrize("name", batch_platform.__all__)
def test_every_public_name_exists_and_is_that_of_its_room(name):
    public = getattr(batch_platform, name)
    assert public.__name__ == name
    assert getattr(importlib.import_module(public.__module__), name) is public


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="'batch_platform' has no attribute 'Warehouse'"):
        _ = batch_platform.Warehouse


def test_every_block_of_the_declaration_is_public():
    assert blocks_of(PipelineSpec) - {PipelineSpec} == {
        public
        for name in batch_platform.__all__
        if isinstance(public := getattr(batch_platform, name), type) and issubclass(public, Block)
    } - {BatchInference}


def blocks_of(annotation):
    """A block and all that it holds, or those that an annotation names."""
    if not (isinstance(annotation, type) and issubclass(annotation, Block)):
        return {block for argument in get_args(annotation) for block in blocks_of(argument)}
    inner = (blocks_of(field.annotation) for field in annotation.model_fields.values())
    return {annotation}.union(*inner)


def test_classes_declare_what_mappings_declare():
    declared = declared_by_classes()
    assert BatchInference(**declared.model_dump(exclude_unset=True, by_alias=True)) == declared


@pytest.mark.full
def test_the_public_names_are_imported_by_a_star():
    code = f"from batch_platform import *; print(all(name in globals() for name in {batch_platform.__all__!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
