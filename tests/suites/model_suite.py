"""Our model in the library's model and generation suites. Run by `library.py`, which puts its `tests` on the path."""

import unittest
from importlib import import_module
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration, Ross3DModel
from ross3d.tests.fabricate import make_config
from ross3d.views_ross3d import get_views


# By name: `tests` is the library's folder here.
common = import_module("tests.test_modeling_common")
config_common = import_module("tests.test_configuration_common")

# What the library's own models have by being part of it.
AutoConfig.register("ross3d", Ross3DConfig)
AutoModel.register(Ross3DConfig, Ross3DModel)
AutoModelForImageTextToText.register(Ross3DConfig, Ross3DForConditionalGeneration)
modeling_auto.MODEL_MAPPING_NAMES["ross3d"] = "Ross3DModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["ross3d"] = "Ross3DForConditionalGeneration"

# Low, since checks make the vocabulary smaller and cut ids to it.
IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN = 4, 5, 6
NUM_VIEWS = 2


class Ross3DModelTester:
    """The library asks this for a config and inputs: rows of two views without depth, then a question."""

    batch_size = 3
    is_training = True
    seq_length = 31
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    image_token_id = IMAGE_TOKEN

    def __init__(self):
        # Its checks of image features count one picture a row.
        self.vision_model_tester = SimpleNamespace(
            num_hidden_layers=2,
            prepare_config_and_inputs_for_common=lambda: (
                self.get_config(),
                {"pixel_values": common.floats_tensor([self.batch_size, 1, 3, 20, 20])},
            ),
        )

    def get_config(self):
        return make_config(image_token_id=IMAGE_TOKEN, ground_token_id=GROUND_TOKEN, coord_token_id=COORD_TOKEN)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], 80).clamp(min=COORD_TOKEN + 1)
        input_ids[:, : NUM_VIEWS * get_views(config).layout.num_positions] = IMAGE_TOKEN
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": common.floats_tensor([self.batch_size, NUM_VIEWS, 3, 20, 20]),
        }


class Ross3DModelTest(common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (Ross3DModel, Ross3DForConditionalGeneration)
    _is_composite = True

    def setUp(self):
        self.model_tester = Ross3DModelTester()
        self.config_tester = config_common.ConfigTester(self, config_class=Ross3DConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()
