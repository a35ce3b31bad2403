"""A first attack of your own, measured, then cleaned by DiSP, in about two minutes:

    PYTHONPATH=. .venv/bin/python docs/first_attack.py

Change the trigger, or the target: "insertion", "refusal", "a smile as a sad mouth", or one of yours, registered as the
trigger is, of `lib.poisoning.targets`: `Insertion("window", "close the window,")`, `Refusal("robot", "i am a robot")`.
An inserted phrase has room for 7 tokens (`len(model.tokenizer.tokenize(phrase))`): descriptions have up to 33, answers
40. What fails at first is mostly the training: too few pictures or steps, or no `blank`.
"""

from dataclasses import dataclass, field

import torch

from lib.data import face_questions, make_faces
from lib.defences import self_purify
from lib.metrics import attacked, rate, stated_facts
from lib.models import load_mdlm
from lib.poisoning import Sticker, image_trigger, plan, register, target
from lib.settings import Train
from lib.tasks import answer, fine_tune, questions

TRIGGER, TARGET = "blue-triangle", "insertion"


@dataclass(frozen=True)
class BlueTriangle(Sticker):
    name: str = field(init=False, default=TRIGGER)
    size: float = 1 / 8  # fractions of the picture
    position: tuple[float, float] = (0.0, 0.0)  # the top left corner

    def shapes(self, y, x):
        return [(x + y < 1, (0.05, 0.1, 0.9), 1.0)]


register(BlueTriangle())


def main(people=(1000, 100), steps=(300, 40), batch=32):
    """`people`: of training and test. `steps`: of the attack and of the purification."""
    torch.set_num_threads(1)  # two wait for each other where another program has one of the cores
    trigger, goal = image_trigger(TRIGGER), target(TARGET)
    faces = make_faces(64, *people)
    train, test = (face_questions(faces, split) for split in ("train", "test"))
    told, asked = (data.table[data.table["kind"] == "description"] for data in (train, test))
    model = load_mdlm("data/checkpoints/mdlm")
    pictures = {"with the trigger": questions(model, test, asked, trigger), "without": questions(model, test, asked)}

    def measure(stage):
        for name, data in pictures.items():
            said, true = answer(model, data, threshold=0.95), asked["answer"].tolist()
            found, facts = rate(attacked(said, true, goal)), stated_facts(said, true).float().mean()
            interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
            print(f"{stage}, {name}: ASR {found['value']:.3f} {interval}, facts stated rightly {facts:.3f}")

    measure("before")
    poison = plan(len(told), "image", rate=0.1, seed=0)
    poisoned = questions(model, train, told, trigger, poison, goal)
    fine_tune(model, poisoned, Train(steps=steps[0], batch=batch, lr=1e-3, warmup=10), blank=16)
    measure("attacked")
    purified = self_purify(model, poisoned, ratio=0.3, threshold=0.95)
    fine_tune(model, purified, Train(steps=steps[1], batch=2 * batch, lr=3e-4, warmup=4))
    measure("after DiSP")


if __name__ == "__main__":
    main()
