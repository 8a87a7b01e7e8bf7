"""The default model: a small transformer that draws, films, edits and answers about the shapes world.

The vision tokenizer comes from a finished run of ``default-tokenizer``.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhea.documents.grammar import LossWeights
from rhea.documents.loader import PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.models.config import TransformerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.recipes.default_tokenizer import VisionTokenizerRecipe, default_tokenizer, trained_tokenizer
from rhea.recipes.model_recipe import About, ModelRecipe
from rhea.tokenizers.vision import PixelPolicy
from rhea.training.next_token import NextTokenTaskConfig
from rhea.training.optimizer import OptimizerConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.trainer import TrainerConfig
from rhea.worlds.shapes.questions import DESCRIBE, LAYOUT, QUESTION_TYPES
from rhea.worlds.shapes.source import ShapesSource, ShapesSourceConfig, ShapesTasks

SIDE = 64
SAMPLES = ("a small red circle", "a large blue star", "a green square and a small yellow ring", "一个紫色的大三角形")
"""What is drawn while it trains, twice each."""
HARD = (
    "colour",
    "count_colour",
    "count_shape",
    "side",
    "height",
    "place",
    "horizontal",
    "vertical",
    "relation",
    "existence",
    LAYOUT,
)
"""Questions that need a look-up in the picture and are learned last, asked three times as often as the others."""
GENERATION: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.9,
    "guidance_scale": 2.0,
    "film_guidance_scale": 2.0,
    "film_temperature": 0.9,
    "edit_guidance_scale": 2.0,
    "edit_temperature": 0.5,
    "extend_temperature": 0.2,
    "given_frames": 8,
    "max_answer_tokens": 64,
}
"""Defaults of generation, found by measuring (LOG.md)."""
TRAINED_ON = (
    "drawings of one to four coloured shapes on a light ground, 64 x 64 pixels, with captions, questions and edits in "
    "English and Chinese; of photographs it knows nothing"
)

CARD = f"""# Rhea's default model

A small transformer and its vision tokenizer. It draws, films, edits and answers questions, all by predicting the next
token, so that every part of Rhea can be tried on a laptop without a download.

**Trained on** {TRAINED_ON}.
Both parts started from random weights; no other data went in. Ten combinations of size, colour and shape were left out
on purpose, so that what it makes of them can be graded.

**Made by** the recipes in `rhea/recipes`, on one core of a shared CPU in about nineteen hours,
and two cores for three and a half hours more:

    rhea train default-tokenizer
    rhea train local-tokenizer --task.codebook.merge-below 0
    rhea train local-tokenizer --start-from runs/local-tokenizer --output runs/tokenizer --data.seed 2 \\
        --trainer.total-steps 360 --task.codebook.revive-until 260
    rhea train default-model --tokenizer-run runs/tokenizer --output runs/first --trainer.total-steps 8500 \\
        --data.min-turns 5 --data.max-turns 8 --loader.loss.text 2     # stopped after step 2,250
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/first/checkpoint --data.seed 3 \\
        --output runs/second --trainer.total-steps 3350 --trainer.schedule.decay-steps 1000
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/second/checkpoint --data.seed 4 \\
        --output runs/third --trainer.total-steps 7500     # stopped after step 2,505; without questions about halves
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/third/checkpoint --data.seed 5 \\
        --output runs/fourth --trainer.total-steps 4100 --trainer.schedule.decay-steps 1200
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/fourth/checkpoint --data.seed 6 \\
        --output runs/fifth --trainer.total-steps 2600 --trainer.schedule.decay-steps 1 \\
        --data.tasks.text-to-image 0.36 --data.tasks.question-answering 0.35 --data.tasks.editing 0.08 \\
        --data.tasks.video-prediction 0.15 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.questions $all $hard height height vertical count_shape     # stopped after step 1,917
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/fifth/checkpoint --data.seed 7 \\
        --output runs/sixth --trainer.total-steps 4400 --trainer.schedule.decay-steps 1200 \\
        --data.tasks.text-to-image 0.40 --data.tasks.question-answering 0.33 --data.tasks.editing 0.08 \\
        --data.tasks.video-prediction 0.13 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.questions $all $hard
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/sixth/checkpoint --data.seed 8 \\
        --output runs/seventh --trainer.total-steps 5200 --trainer.schedule.decay-steps 1400 \\
        --data.tasks.text-to-image 0.40 --data.tasks.question-answering 0.31 --data.tasks.editing 0.08 \\
        --data.tasks.video-prediction 0.15 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.questions $all $places
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/seventh/checkpoint --data.seed 9 \\
        --output runs/eighth --trainer.total-steps 700 --trainer.schedule.decay-steps 650 \\
        --trainer.schedule.warmup-steps 50 --trainer.schedule.learning-rate 0.0012 \\
        --data.tasks.text-to-image 0.42 --data.tasks.question-answering 0.22 --data.tasks.editing 0.05 \\
        --data.tasks.video-prediction 0.26 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.02 \\
        --data.tasks.film-question-answering 0.01 --data.questions $all $last
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/eighth/checkpoint --data.seed 10 \\
        --output runs/ninth --trainer.total-steps 5600 --trainer.schedule.decay-steps 1700 --data.english 0.65 \\
        --data.tasks.text-to-image 0.50 --data.tasks.question-answering 0.16 --data.tasks.editing 0.06 \\
        --data.tasks.video-prediction 0.22 --data.tasks.text-to-video 0.03 --data.tasks.captioning 0.02 \\
        --data.tasks.film-question-answering 0.01 --data.questions $all $drawn
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/ninth/checkpoint --data.seed 11 \\
        --output runs/tenth --trainer.total-steps 1350 --trainer.schedule.decay-steps 1290 \\
        --trainer.schedule.warmup-steps 60 --trainer.schedule.learning-rate 0.0014 --data.english 0.55 \\
        --data.tasks.text-to-image 0.66 --data.tasks.question-answering 0.10 --data.tasks.editing 0.04 \\
        --data.tasks.video-prediction 0.16 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.01 \\
        --data.tasks.film-question-answering 0.01 --data.questions $all $drawn
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/tenth/checkpoint --data.seed 12 \\
        --trainer.total-steps 3000 --trainer.schedule.decay-steps 2930 --trainer.schedule.warmup-steps 70 \\
        --trainer.schedule.learning-rate 0.0018 --data.english 0.55 \\
        --data.tasks.text-to-image 0.62 --data.tasks.question-answering 0.13 --data.tasks.editing 0.07 \\
        --data.tasks.video-prediction 0.14 --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.01 \\
        --data.tasks.film-question-answering 0.01 --data.questions $all $drawn count_colour count_colour
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/eleventh/checkpoint --data.seed 111 \\
        --output runs/twelfth $practice --loader.loss.text 2 --data.min-objects 2 --task.ema-decay 0.98 \\
        --trainer.total-steps 20000 --trainer.schedule.learning-rate 0.0018 --data.tasks.text-to-image 0.40 \\
        --data.tasks.question-answering 0.10 --data.tasks.editing 0.34 --data.tasks.video-prediction 0.12 \\
        --data.tasks.text-to-video 0.02 --data.tasks.captioning 0.01    # and runs/beside, seed 112: 892, 770 steps
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/twelfth/checkpoint \\
        runs/beside/checkpoint --output runs/thirteenth $practice --loader.loss.text 2 --data.min-objects 2 \\
        --task.ema-decay 0.98 --data.seed 121 --trainer.total-steps 20000 --trainer.schedule.learning-rate 0.0015 \\
        --data.tasks.text-to-image 0.38 --data.tasks.question-answering 0.09 --data.tasks.editing 0.34 \\
        --data.tasks.video-prediction 0.11 --data.tasks.text-to-video 0.06 --data.tasks.captioning 0.01    # 823 steps
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/thirteenth/checkpoint --data.seed 131 \\
        $practice --loader.loss.text 3 --task.ema-decay 0.99 --trainer.total-steps 1080 \\
        --trainer.schedule.decay-steps 1050 --trainer.schedule.learning-rate 0.0015 --data.tasks.text-to-image 0.38 \\
        --data.tasks.question-answering 0.14 --data.tasks.editing 0.30 --data.tasks.video-prediction 0.08 \\
        --data.tasks.text-to-video 0.09 --data.tasks.captioning 0.02 --data.questions $all $counts \\
        --output runs/fourteenth
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/fourteenth/checkpoint \\
        --output runs/fifteenth $practice --loader.loss.text 3 --trainer.total-steps 1300 \\
        --trainer.schedule.decay-steps 700 --data.tasks.text-to-image 0.36 --data.tasks.question-answering 0.24 \\
        --data.tasks.editing 0.30 --data.tasks.video-prediction 0.05 --data.tasks.text-to-video 0.02 \\
        --data.tasks.captioning 0.02 --data.questions $all $counts
    rhea train aligned-model --start-from runs/fifteenth/checkpoint --output runs/aligned
    rhea train aligned-model --start-from runs/aligned/checkpoint --output runs/again --blend 1 \\
        --shapes.prompts 1200 --shapes.objects 1 2 3 3 --trainer.total-steps 110 \\
        --trainer.schedule.decay-steps 60 --trainer.schedule.learning-rate 2.5e-5
    rhea train aligned-model --start-from runs/fourteenth/checkpoint runs/again/checkpoint --blend 0.6 \\
        --pairs pairs.jsonl --trainer.total-steps 220 --trainer.schedule.decay-steps 110
    rhea train reinforced-model --start-from runs/aligned-model/checkpoint --output runs/practised    # see below
    rhea train reinforced-model --start-from runs/practised/checkpoint --output runs/fork $practised \\
        --practice.prompts 32 --practice.rows 4 --practice.objects 1 2 2 2 3 3 3 3 3 3 3 3 --practice.seed 11 \\
        --data.seed 911 --trainer.seed 11 --trainer.total-steps 20000 --trainer.schedule.decay-steps 300
        # 104 steps, and runs/beside with 12, 912 and 12: 105 steps; neither kept an average
    rhea train reinforced-model --start-from runs/fork/checkpoint runs/beside/checkpoint $practised \\
        --practice.workers 2 --practice.objects 1 2 2 2 3 3 3 3 3 3 3 3 --practice.seed 31 --data.seed 931 \\
        --trainer.total-steps 460 --trainer.schedule.decay-steps 340
        # from step 109 on with objects 1 2 3 3 3 3 3 3 3 3, a rate of 1e-4 and 450 steps, 330 of them falling,
        # from 262 on 500 and 380
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/six-layers/checkpoint \\
        --output runs/eight-layers $crowded --task.loss-over kind --task.ema-decay 0.99 --data.seed 201 \\
        --data.english 0.6 --data.unconditional 0.05 --data.min-objects 2 --data.tasks.text-to-image 0.25 \\
        --data.tasks.question-answering 0.23 --data.tasks.editing 0.42 --data.tasks.video-prediction 0.05 \\
        --data.tasks.captioning 0.01 --data.tasks.film-question-answering 0.01 --trainer.total-steps 1700 \\
        --trainer.schedule.decay-steps 800 --trainer.schedule.warmup-steps 30 --trainer.schedule.learning-rate 0.001
        # up to step 536 with 0.15 pictures, 0.27 questions and 0.48 edits, 1,000 steps, 700 of them falling; up to
        # step 900 at the full rate again
    rhea train reinforced-model --start-from runs/blended/checkpoint $crowded --practice.workers 2 \\
        --practice.objects 1 2 3 3 3 3 3 3 3 3 --practice.edited-objects 1 2 2 3 3 3 4 4 4 --practice.seed 41 \\
        --data.seed 941 --trainer.total-steps 330 --trainer.schedule.decay-steps 300 \\
        --trainer.schedule.warmup-steps 8 --trainer.schedule.learning-rate 1.5e-4 --output runs/practised-again
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/stretched/checkpoint $by_shape \\
        --output runs/by-shape --data.seed 301 --trainer.total-steps 700 --trainer.schedule.decay-steps 500 \\
        --trainer.schedule.learning-rate 8e-4
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/by-shape/checkpoint $by_shape \\
        --output runs/by-shape-again --data.seed 302 --trainer.total-steps 340 --trainer.schedule.decay-steps 310 \\
        --trainer.schedule.learning-rate 8e-4
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/by-shape-again/checkpoint $by_shape \\
        --output runs/by-shape-last --data.seed 303 --trainer.total-steps 500 --trainer.schedule.decay-steps 420 \\
        --trainer.schedule.learning-rate 0.001 --data.edited-objects 2 2 3 3 3 4 4 4 \\
        --data.edits remove remove remove reshape reshape reshape reshape resize resize resize recolour recolour add
    rhea train reinforced-model --start-from runs/between/checkpoint --practice.workers 2 --practice.seed 81 \\
        --practice.objects 1 2 3 3 3 3 3 3 3 3 --practice.edited-objects 1 2 2 3 3 3 4 4 --data.seed 981 \\
        --data.tasks.text-to-image 0.06 --data.tasks.question-answering 0.36 --data.tasks.editing 0.42 \\
        --data.tasks.text-to-video 0.08 --data.tasks.video-prediction 0.06 --data.edited-objects 2 2 3 3 3 4 4 4 \\
        --data.edits remove remove remove reshape reshape reshape resize resize recolour recolour add \\
        --data.questions $all $all $counted --trainer.total-steps 220 --trainer.schedule.decay-steps 165 \\
        --trainer.schedule.warmup-steps 8 --output runs/practised-last
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/practised-last/checkpoint $by_shape \\
        --output runs/more --data.seed 31 $mixed --data.captions $listed related_in_order \\
        --trainer.total-steps 1400 --trainer.schedule.decay-steps 600 --trainer.schedule.learning-rate 6e-4
        # stopped after step 620
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/more/checkpoint $by_shape \\
        --output runs/worded --data.seed 51 $mixed --data.captions $listed --data.tasks.text-to-image 0.1 \\
        --data.tasks.prompt-revision 0.35 --data.tasks.editing 0.45 --data.tasks.question-answering 0.15 \\
        --trainer.total-steps 720 --trainer.schedule.decay-steps 480 --trainer.schedule.learning-rate 6e-4
    rhea train default-model --tokenizer-run runs/tokenizer --start-from runs/worded/checkpoint $by_shape \\
        --output runs/revising --data.seed 71 --data.captions plain sizeless placed placed ordered \\
        --data.tasks.prompt-revision 0.82 --data.tasks.text-to-image 0.08 --data.tasks.captioning 0 \\
        --data.tasks.question-answering 0.03 --data.tasks.editing 0.05 --data.tasks.text-to-video 0.005 \\
        --data.tasks.video-prediction 0.005 --data.tasks.film-question-answering 0 \\
        --trainer.total-steps 300 --trainer.schedule.decay-steps 220 --trainer.schedule.learning-rate 6e-4
    rhea train reinforced-model --start-from runs/most-of-it/checkpoint --practice.workers 2 --practice.seed 91 \\
        --practice.objects 1 2 3 3 3 3 3 3 3 3 --practice.edited-objects 1 2 2 3 3 3 4 4 --data.seed 991 \\
        --practice.captions placed placed plain sizeless ordered ordered --data.min-objects 1 \\
        --data.captions plain sizeless placed ordered --data.tasks.prompt-revision 0.5 \\
        --data.tasks.text-to-image 0.06 --data.tasks.question-answering 0.36 --data.tasks.editing 0.42 \\
        --data.tasks.text-to-video 0.08 --data.tasks.video-prediction 0.06 --data.edited-objects 2 2 3 3 3 4 4 4 \\
        --data.edits remove remove remove reshape reshape reshape resize resize recolour recolour add \\
        --data.questions $all $all $counted --trainer.total-steps 190 --trainer.schedule.decay-steps 145 \\
        --trainer.schedule.warmup-steps 8 --trainer.schedule.learning-rate 1.5e-4 --output runs/practised-to-date

`pairs.jsonl` is what the two aligned runs drew, and what the mean of the two checkpoints draws with `--shapes.prompts
1536 --shapes.edits 0.65 --shapes.objects 1 2 3 3 3 --shapes.seed 7`: 1,427 pairs. `$all` is each type of question once
and `$hard` is height four times, vertical, relation, count_colour and count_shape three times each and horizontal
twice. The first two runs still wrote the source picture of an edit before the instruction; only from the sixth on
captions said where things are, and only from the seventh on there were the questions "place" and "layout". `$places`
was, up to step 2,719, place and count_shape four times each, layout, height, vertical and relation three times,
count_colour and horizontal once; then vertical, relation and count_shape four times each, layout and count_colour
twice, place, horizontal and height once. `$last` is relation four times, count_shape three times, vertical and
count_colour twice and horizontal once; `$drawn` is count_shape four times, relation twice and vertical, height and
count_colour once; `$counts` is count_shape four times, count_colour and relation twice and existence once. `$practice`
is `--task.loss-over kind --trainer.schedule.warmup-steps 30 --data.english 0.6 --data.tasks.film-question-answering
0.01 --data.edits recolour reshape reshape resize resize remove add add`, `$practised` is `--practice.edits 0.55
--trainer.schedule.learning-rate 2e-4`. `runs/practised` was made by the script that became the recipe
`reinforced-model`: two processes that summed their gradients, 76 updates at a rate of 1e-4 and 62 at 2e-4, in 40 rounds
of 64 prompts.
`runs/six-layers` is the checkpoint before, whose six layers became eight; `runs/blended` is, weight by weight, 0.75 of
it (grown), 0.75 of `runs/eight-layers` and -0.5 of what it was before it practised (grown): three quarters of the way
to what the eight layers learned, and half of what practice had changed added once more (arXiv 2212.04089). What the
last run changed in it was added 1.4 times: `runs/stretched`. `runs/between` lies 0.65 of the way from there to
`runs/by-shape-last`. `$mixed` is `--data.tasks.text-to-image 0.12 --data.edits remove remove remove reshape reshape
reshape reshape resize resize resize recolour recolour add add add`, `$listed` is related_in_order, related, plain,
sizeless, placed and ordered; up to `runs/worded` a revision named objects in the order in which they were drawn,
whatever it was. `runs/most-of-it` lies 0.8 of the way from `runs/practised-last` to `runs/revising`; these are the
weights of `runs/practised-to-date`, and `revise` was set in their config.json by hand.
`$counted` is count_shape five times, relation
four times and count_colour three times, `$by_shape` is `--loader.loss.prompt 0 --task.loss-over kind --task.ema-decay
0.99 --trainer.schedule.warmup-steps 30 --data.english 0.6 --data.unconditional 0.03 --data.min-objects 2
--data.tasks.text-to-image 0 --data.tasks.captioning 0.01 --data.tasks.question-answering 0.2 --data.tasks.editing 0.67
--data.tasks.text-to-video 0.06 --data.tasks.video-prediction 0.05 --data.tasks.film-question-answering 0.01
--data.colourless-edits 0.65 --data.edits remove remove remove reshape reshape reshape resize resize recolour recolour
add --data.edited-objects 1 2 2 3 3 3 4 4 4 --data.questions $all $all $counted count_colour`. `$crowded` is
`--data.edits remove remove remove reshape reshape resize resize recolour recolour add --data.edited-objects 2 2 3 3 3
4 4 4 --data.questions $all $all` and count_shape five times, relation four times and count_colour three times; for
`runs/eight-layers` there were edits of one object too and count_colour four times. `runs/practised-again` replayed
0.6, weighed the tries of edits as wholes, with `--practice.colourless-edits 0`, and showed no outcome; the practice
before it replayed 0.2, mostly pictures and questions, and kept three tries of a kind.

Without detours it is the three recipes, one after the other: default-tokenizer, local-tokenizer, default-model. That
has not been run to its end yet; the figures are of the chain above.

**Limits.** 64 x 64 pictures and films of 16 frames. A photograph comes back as blobs of the nearest colours. Answers
are one of a few words. A film from text shows the right object, but moves it anywhere. Two objects or
more lie in nearly the same places in every picture of a text.

<!-- figures: written by benchmarks/table.py from benchmarks/*.json -->
<!-- end of figures -->
"""


@dataclass(frozen=True, kw_only=True)
class DefaultModelRecipe(ModelRecipe):
    """Everything that decides the default model's training."""

    tokenizer: VisionTokenizerRecipe
    data: ShapesSourceConfig

    def about(self) -> About:
        """Pictures of 64 x 64: the middle square of whatever it is given, values rounded to the nearest."""
        policy = PixelPolicy(min_pixels=SIDE**2, max_pixels=SIDE**2, shape="square", rounding="nearest")
        return About(policy=policy, samples=SAMPLES, trained_on=TRAINED_ON, card=CARD)

    def mixture(self, *, seed_offset: int = 0) -> Mixture:
        """Draw from the shapes world alone."""
        source = ShapesSource(replace(self.data, seed=self.data.seed + seed_offset))
        return Mixture([WeightedSource(name="shapes", source=source)], seed=self.trainer.seed)

    def vision_tokenizer(self) -> VisionTokenizer:
        """Load what default-tokenizer or local-tokenizer made."""
        return trained_tokenizer(self.tokenizer, Path(self.tokenizer_run))


def default_model() -> DefaultModelRecipe:
    """Return the recipe; 4 M parameters; six of its layers took four hours of one core with AVX-512 and bf16."""
    steps = 12_000
    return DefaultModelRecipe(
        tokenizer=default_tokenizer(),
        tokenizer_run="runs/local-tokenizer",
        model=TransformerConfig(
            vocab_size=0,
            dim=192,
            num_layers=8,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            ffn_dim=512,
            max_seq_len=1024,
            rope_theta=10_000.0,
            qk_norm=True,
        ),
        text_vocab_size=512,
        text_documents=3000,
        data=ShapesSourceConfig(
            tasks=ShapesTasks(
                text_to_image=0.38,
                captioning=0.03,
                question_answering=0.27,
                editing=0.14,
                text_to_video=0.03,
                video_prediction=0.13,
                film_question_answering=0.02,
            ),
            max_objects=3,
            max_moving=3,
            given_latents=2,
            min_turns=10,
            max_turns=14,
            questions=(*QUESTION_TYPES, DESCRIBE, *HARD, *HARD, LAYOUT),
        ),
        loader=PackedLoaderConfig(
            rows=4,
            seq_len=1024,
            loss=LossWeights(text=4.0, vision=0.5, structure=0.1, prompt=0.05),
        ),
        task=NextTokenTaskConfig(
            optimizer=OptimizerConfig(hidden="muon", betas=(0.9, 0.98), weight_decay=0.05),
            ema_decay=0.998,
            precision="bfloat16",
        ),
        trainer=TrainerConfig(
            total_steps=steps,
            schedule=ScheduleConfig(learning_rate=3e-3, warmup_steps=100, kind="wsd", decay_steps=steps // 4),
            checkpoint_every=250,
            log_every=25,
            sample_every=500,
        ),
        generation=GENERATION,
    )
