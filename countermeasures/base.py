"""The points at which a countermeasure can step in; see `Countermeasure`.

Public: Countermeasure.
"""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

import utils


class Countermeasure(BaseModel):
    """A defence of the model's owner. Its fields are its settings; a subclass overrides the points where it acts.

    needs_training: False where it changes only what a finished model does, so that --base_model can be reused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    needs_training: ClassVar[bool] = True

    def __str__(self):
        """ "NAME:setting=value,...", all settings that have a value: what `countermeasures.parse` reads."""
        settings = ",".join(f"{name}={value}" for name, value in self.model_dump(exclude_none=True).items())
        return self.name + (f":{settings}" if settings else "")

    @property
    def clean_share(self):
        """How many clean images the defender holds besides, as a share of the training set."""
        return 0.0

    def recipe(self, recipe):
        """The training's `utils.TrainingSettings`, changed."""
        return recipe

    def prepare(self, model):
        """The network with another structure; called before its weights are trained or loaded."""
        return model

    def train(self, job):
        """Train job.model. job: `experiment.training.TrainingJob`. Returns the history."""
        return job.fit(job.model, hooks=self.hooks(job))

    def hooks(self, job):
        """`utils.TrainingHooks` for `train`."""
        return utils.TrainingHooks()

    def after(self, job):
        """Change the trained job.model in place, or put tensors that `answer` needs, by name, into job.learned."""

    @property
    def refuses(self):
        """Whether images may be left without an answer, as rows of NaN."""
        return False

    def answer(self, query, seed, learned=None):
        """What the auditor gets to see: another function from images to logits (`utils.make_query`).

        learned: {name: tensor}, what `after` left in job.learned, which is kept in the model's file.
        """
        return query

    def report(self, job):
        """Figures for result.json, for example an epsilon."""
        return {}
