"""Model fine-tuning on clean data (section 5.2.3)."""

from typing import ClassVar

from pydantic import Field

from countermeasures.base import Countermeasure


class FineTuning(Countermeasure):
    """Train the finished model on clean images that it has not seen, as many as `share` of its training set.

    The paper: learning rates from 1e-5 to 0.1, 20 epochs, 10 %. The rate is constant, momentum and weight decay are
    those of the training.
    """

    name: ClassVar[str] = "fine_tuning"
    needs_training: ClassVar[bool] = False
    lr: float = Field(0.05, gt=0)
    epochs: int = Field(20, ge=1)
    share: float = Field(0.1, gt=0, le=1)

    @property
    def clean_share(self):
        return self.share

    def after(self, job):
        images, labels = job.clean()
        job.fit(job.model, images, labels, "fine-tuning", validation=None, lr=self.lr, epoch=self.epochs, milestones=())
