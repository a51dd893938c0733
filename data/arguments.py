"""The section `data` of a run's file: which scenes and questions a run reads, and how they become rows."""

from dataclasses import dataclass

from ross3d.command_line import COUNT, NUM_VIEWS, check_fields
from ross3d.data.geometry_features import STORAGES
from ross3d.data.proposal_sources import TRAINING_SOURCES
from ross3d.data.sources import DECODES, make_reading


VISITS = ("scenes", "questions")


@dataclass
class DataArguments:
    """Which scenes and questions a run reads.

    Attributes:
        root (`str`): folder with `train/`, `val/` and `annotations/` (`python -m ross3d.scenes.build` makes one).
        split (`str`): which of them to train on.
        limit (`int`, *optional*): maximum number of scenes.
        epochs (`int`): passes over the scenes, or over the questions; the Trainer sees them as one.
        visit (`str`): what a pass visits once: `scenes`, each with one row of its questions, drawn again in every
            pass; or `questions`, in as many rows as they need (published, with `questions_per_row: 1`).
        questions_per_row (`int`): maximum number of questions in a row, after its scene.
        tokens_per_row (`int`, *optional*): approximate maximum of question and answer tokens in a row.
        one_task_per_step (`bool`): with `visit: questions`, keep grounding out of steps with other questions
            (published).
        labelled_share (`float`): share of the samples (scenes or questions, as `visit` says) that keep their text; the
            others train reconstruction and distillation alone, the same ones in every pass.
        unlabelled_root (`str`, *optional*): folder of scans without questions, which train reconstruction and
            distillation alone.
        unlabelled_share (`float`): share of all rows that those scans make up; they take turns.
        proposals (`str`): what grounding chooses among: the objects' own boxes (`ground_truth`, published);
            `jittered`, the same moved by a few per cent, among boxes of no object; `depth`, proposed from each
            scene's depth, 0.06 s a room once in every process; `given`, a detector's, in `proposals.json`; or
            `mixed`, half of the rows with jittered boxes and the others with boxes like those from depth, which
            costs next to nothing. With `depth`, `given` and `mixed` every box of IoU 0.5 with an object counts as the
            object, and one that none reaches gets its own, jittered.
        blind (`bool`): train on the words alone, the baseline for every score.
        num_views (`int`): views of a scan that are read, evenly spread (published: 32).
        decode (`str`): how JPEG pictures are decoded: `exact`, at their own size (published); or `reduced`, at the
            smallest size that is no smaller than the model's input, which is faster and changes pixels slightly.
        rotate (`str` or `int`, *optional*): degrees by which pictures, with their depth and cameras, are turned
            counter-clockwise, 0, 90, 180 or 270; `auto` each until the world's z points up in it. By
            default as each layout has it: `auto` for ARKitScenes, else 0.
        max_excluded (`float`, *optional*): share of a scan's frames that may be lost, missing or damaged, from 0 to
            below 1; by default as each layout has it.
        allow_outside (`bool`): let files and links of a scan name pictures outside its folder; only for scans that you
            trust.
        prepared (`str`, *optional*): folder for prepared scenes, which later epochs and runs read instead of pictures;
            24 MB a scene of 32 views at the released size.
        latents (`str`, *optional*): folder with the teacher's latents of all scenes
            (`python -m ross3d.training.latents CONFIG.yaml`), so that no step passes pictures to the teacher;
            10 MB a scene of 32 views at the released size.
        geometry_features (`str`, *optional*): folder with the geometry encoder's features of all scenes
            (`python -m ross3d.training.geometry_features CONFIG.yaml`), so that no step runs the encoder; 26 MB a
            scene of 32 views at the released size, half of it as int8.
        geometry_storage (`str`): how the files that the command makes store numbers: `float32`, `bfloat16`, or `int8`
            with one scale per token and layer; training reads each.
    """

    root: str = "outputs/demo/scenes"
    split: str = "train"
    limit: int | None = None
    epochs: int = 1
    visit: str = "scenes"
    questions_per_row: int = 1
    tokens_per_row: int | None = None
    one_task_per_step: bool = False
    labelled_share: float = 1.0
    unlabelled_root: str | None = None
    unlabelled_share: float = 0.0
    proposals: str = "ground_truth"
    blind: bool = False
    num_views: int = 32
    decode: str = "exact"
    rotate: str | int | None = None
    max_excluded: float | None = None
    allow_outside: bool = False
    prepared: str | None = None
    latents: str | None = None
    geometry_features: str | None = None
    geometry_storage: str = "bfloat16"

    def __post_init__(self):
        counts = dict.fromkeys(("limit", "epochs", "questions_per_row", "tokens_per_row"), COUNT)
        check_fields(self, "data.", {**counts, "num_views": NUM_VIEWS})
        for name, known in (("visit", VISITS), ("proposals", TRAINING_SOURCES), ("decode", DECODES),
                            ("geometry_storage", STORAGES)):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"data.{name}: expected one of {known}, got {getattr(self, name)!r}.")
        if self.one_task_per_step and self.visit != "questions":
            raise ValueError(
                "data.one_task_per_step: expected visit: questions, got visit: scenes; change one of the two."
            )
        if not 0 < self.labelled_share <= 1:
            raise ValueError(
                f"data.labelled_share: expected a fraction above 0 and at most 1, got {self.labelled_share}."
            )
        if not 0 <= self.unlabelled_share < 1 or (self.unlabelled_share > 0) != (self.unlabelled_root is not None):
            raise ValueError(
                "data.unlabelled_share: expected a fraction above 0 and below 1 together with data.unlabelled_root,"
                f" or neither, got {self.unlabelled_share} with {self.unlabelled_root}."
            )
        make_reading(self.rotate, self.max_excluded, self.allow_outside)
