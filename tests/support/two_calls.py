"""A request in two calls of the live executor, with a policy's decisions between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.datasets.images import decode_image
from knobctl.data.protocols import Requests
from knobctl.data.samples import Sample
from knobctl.precompute.run.live import LiveExecutor


def two_calls(
    live: LiveExecutor, policy: TwoStagePolicy, sample: Sample, budget_ms: float
) -> tuple[tuple[Any, ...], str]:
    """Returns the setting and the text of the live executor with the policy's decisions between its calls."""
    space, model = policy.space, live.knobs.model
    height, width = decode_image(sample.image.read_bytes(), "").shape[:2]
    style = live.knobs.task(sample).style
    sizes = [
        model.prompt_size(sample.question, style, model.view(height, width, span)) for span in space.tier_ranges or ()
    ]
    feature_D = live.language_feature(sample)
    requests = Requests(
        (sample.sample_id,),
        (sample.dataset,),
        feature_D[None],
        np.array([budget_ms], dtype=np.float32),
        vision_tokens_BT=np.array([[size.vision_tokens for size in sizes]], dtype=np.float32),
        text_tokens_B=np.array([sizes[0].text_tokens], dtype=np.float32),
    )
    tier_B, position_B = policy.choose_image(requests)
    tier, position = space.tiers[tier_B[0]], space.insertion_positions[position_B[0]]
    token_D, handle = live.latency_token(sample, tier, position, budget_ms)
    top_k_B, blocks_B = policy.choose_compute(requests, tier_B, position_B, token_D[None])
    top_k, num_blocks = space.top_k[top_k_B[0]], space.num_blocks[blocks_B[0]]
    return (tier, position, top_k, num_blocks), live.finish(handle, top_k, num_blocks).answer
