"""Our processors in the library's suites. Run by `library.py`, which puts its `tests` on the path."""

import unittest
from importlib import import_module

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.tests.posed_views import BEV_SIZE, PATCH_SIZE, VIEW_SIZE, make_test_processor


# By name: `tests` is the library's folder here.
image_common = import_module("tests.test_image_processing_common")
processor_common = import_module("tests.test_processing_common")

# What the library's own processors have by being part of it.
AutoConfig.register("ross3d", Ross3DConfig, exist_ok=True)
AutoImageProcessor.register(Ross3DConfig, image_processor_classes={"pil": Ross3DImageProcessor})
AutoProcessor.register(Ross3DConfig, Ross3DProcessor)


class Ross3DProcessorTest(processor_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = Ross3DProcessor

    @classmethod
    def _setup_image_processor(cls):
        return Ross3DImageProcessor(size={"height": VIEW_SIZE, "width": VIEW_SIZE})

    @classmethod
    def _setup_tokenizer(cls):
        return make_test_processor().tokenizer

    @staticmethod
    def prepare_processor_dict():
        # Pictures of the checks are of every shape; the published geometry takes none that are higher than wide.
        return {"patch_size": PATCH_SIZE, "bev_size": BEV_SIZE, "geometry_mode": "valid_depth"}


class Ross3DImageProcessingTester(image_common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        size = {"height": 18, "width": 18}
        super().__init__(parent, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": Ross3DImageProcessor}


class Ross3DImageProcessingTest(image_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Ross3DImageProcessingTester
