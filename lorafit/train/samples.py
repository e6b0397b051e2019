"""Answers to the recipe's sample prompts, to watch a model change."""

from dataclasses import dataclass
from typing import Any

from lorafit.data.chat import Renderer
from lorafit.data.examples import Exchange
from lorafit.model.generate import Sampling, answer


@dataclass(frozen=True)
class Sampler:
    """The prompts as the user wrote them, and how they are rendered and answered."""

    prompts: list[str]
    renderer: Renderer
    max_new_tokens: int

    def answers(self, adapted: Any) -> list[tuple[str, str]]:
        """Prompt and greedy answer of each."""
        rendered = [self.renderer.prompt(Exchange(prompt, "-"))[0] for prompt in self.prompts]
        replies = answer(
            adapted, self.renderer.tokenizer, rendered, Sampling(self.max_new_tokens),
            is_chat=self.renderer.exchanges_as_chat,
        )
        return list(zip(self.prompts, replies, strict=True))
