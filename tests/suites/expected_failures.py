"""Checks of the library's suites that fail on our classes, each with the reason why it does not apply."""

SAVING_ADDS = (
    "compares dictionaries before and after saving; saving adds `auto_map`, the location of its code, to a class"
    " outside of the library"
)
ONE_PICTURE_A_TEXT = (
    "treats a flat list of images as one image per text; here it is the views of one scene, and the texts are"
    " questions about it. A batch is a list of such lists"
)
# Class::check -> reason.
EXPECTED_FAILURES = {
    "Ross3DModelTest::test_can_load_ignoring_mismatched_shapes": (
        "sets every config value whose name contains `_std` to 1e-10; `image_std`, which normalises images, is typed"
        " and has three numbers. `test_mismatched_shapes_are_refused_unless_asked_for` loads weights of other shapes"
    ),
    "Ross3DModelTest::test_sdpa_can_dispatch_composite_models": (
        "compares a name: the language model's `sdpa` is registered through `AttentionInterface` as"
        " `sdpa_shared_prefix`. It uses the same kernels; if several questions share a scene, it attends to the scene"
        " once"
    ),
    "Ross3DProcessorTest::test_apply_chat_template_assistant_mask": (
        "needs offsets into one text; here a row concatenates the ids of a scene and of its questions, and targets"
        " come from `answers=`. `test_chat_template_does_not_mark_what_the_assistant_said`: the mask is refused"
    ),
    "Ross3DProcessorTest::test_get_num_multimodal_tokens_matches_processor_call": ONE_PICTURE_A_TEXT,
    "Ross3DProcessorTest::test_model_input_names": (
        "expects every name after a call with images and text; here the other names need depth, cameras and boxes"
    ),
    "Ross3DProcessorTest::test_processor_from_and_save_pretrained": SAVING_ADDS,
    "Ross3DProcessorTest::test_processor_from_and_save_pretrained_as_nested_dict": SAVING_ADDS,
    "Ross3DProcessorTest::test_processor_text_has_no_visual": (
        "mixes texts with and without images in one call; scene tensors have no rows without views, so this needs two"
        " calls"
    ),
    "Ross3DProcessorTest::test_subprocessor_defaults_0_text": (
        "expects the ids of the text alone; the processor adds the chat template to a plain question. Complete prompts"
        " are not changed"
    ),
    "Ross3DProcessorTest::test_subprocessor_defaults_1_images": (
        "expects (B, 3, H, W); here the views of a scene have their own axis: (B, V, 3, H, W)"
    ),
    "Ross3DProcessorTest::test_subprocessor_defaults_preserved_by_kwargs_0_images": (
        "expects the length that the tokenizer was loaded with; a row contains a whole scene, so padding and length"
        " are arguments of the call only"
    ),
    "Ross3DProcessorTest::test_unstructured_kwargs_batched_0_images": ONE_PICTURE_A_TEXT,
    "Ross3DImageProcessingTest::test_new_models_require_torchvision_backend": (
        "PIL is pinned as the only backend: every machine gets the same pixels, with or without torchvision"
    ),
}
