"""Keys of OpenAI and of other servers that have no effect here.

Clients send them with every request, mostly at values that ask for nothing. Each is one of two: it
is taken at the values that change nothing, and refused otherwise; or it is accepted at any value,
because none could change the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.strict_model import Extra


def _neutral_only(reason: str, **keys: tuple[Any, ...]) -> dict[str, Extra]:
    """Keys that are taken at null and at these values, which change nothing."""
    return {key: Extra(reason, neutral) for key, neutral in keys.items()}


def _accepted(reason: str, *keys: str) -> dict[str, Extra]:
    """Keys that are accepted at any value."""
    return dict.fromkeys(keys, Extra(reason))


_NO_REASONING = "the model does not reason apart from its answer"
# Of the sampling and the prompt: vLLM's, SGLang's, llama.cpp's, and OpenAI's where it has them.
SAMPLING: Mapping[str, Extra] = {
    **_neutral_only(
        "of sampling there are temperature, top_p, top_k and min_p",
        top_a=(0,),
        typical_p=(1,),
        tfs_z=(1,),
        top_n_sigma=(-1,),
        xtc_probability=(0,),
        mirostat=(0,),
        dynatemp_range=(0,),
    ),
    **_neutral_only(
        "of penalties there is repetition_penalty",
        frequency_penalty=(0,),
        presence_penalty=(0,),
        repeat_penalty=(1,),
        length_penalty=(1,),
        dry_multiplier=(0,),
        no_repeat_ngram_size=(0,),
    ),
    **_neutral_only(
        "a request has one answer; send several requests",
        n=(1,),
        best_of=(1,),
        use_beam_search=(False,),
    ),
    **_neutral_only(
        "an answer ends at its end token, at a string of `stop` or at max_tokens",
        ignore_eos=(False,),
        min_tokens=(0,),
        stop_token_ids=([],),
        stop_regex=([],),
        include_stop_str_in_output=(False,),
        no_stop_trim=(False,),
    ),
    **_neutral_only(
        "logits are moved by steering alone",
        logit_bias=({}, []),
        bad_words=([],),
        allowed_token_ids=(),
        logits_processors=([],),
        custom_logit_processor=(),
        logits_processor_args=({},),
    ),
    **_neutral_only(
        "an answer follows `choices` alone",
        guided_json=(),
        guided_regex=(),
        guided_choice=(),
        guided_grammar=(),
        guided_json_object=(False,),
        guided_decoding_backend=(),
        guided_whitespace_pattern=(),
        structured_outputs=(),
        structural_tag=(),
        regex=(),
        ebnf=(),
        grammar=("",),
        json_schema=(),
    ),
    **_neutral_only(
        "answers are text without special tokens",
        skip_special_tokens=(True,),
        spaces_between_special_tokens=(True,),
        detokenize=(True,),
        return_token_ids=(False,),
        return_tokens_as_token_ids=(False,),
        return_hidden_states=(False,),
    ),
    **_neutral_only(
        "probabilities come with `choices`",
        logprobs=(False,),
        top_logprobs=(0,),
        prompt_logprobs=(),
        n_probs=(0,),
    ),
    **_neutral_only(
        "the prompt is the model's own template around the whole conversation",
        chat_template=(),
        chat_template_kwargs=({}, {"enable_thinking": False}, {"thinking": False}),
        add_generation_prompt=(True,),
        continue_final_message=(False,),
        add_special_tokens=(False,),
        echo=(False,),
        documents=([],),
        truncate_prompt_tokens=(),
        mm_processor_kwargs=({},),
        media_io_kwargs=({},),
    ),
    **_neutral_only(
        _NO_REASONING,
        enable_thinking=(False,),
        think=(False,),
        thinking=(False, {"type": "disabled"}),
        thinking_budget=(0,),
        thinking_token_budget=(0,),
        reasoning=({}, {"effort": "none"}, {"enabled": False}),
    ),
    **_neutral_only("all requests have one rank", priority=(0,)),
    **_neutral_only("one model is served, as it was loaded", lora_path=(), models=([],)),
    **_neutral_only(
        "requests go to no other server",
        kv_transfer_params=({},),
        vllm_xargs=({},),
        extra_body=({},),
    ),
    **_accepted(
        "there is no reasoning to send",
        "include_reasoning",
        "separate_reasoning",
        "stream_reasoning",
        "reasoning_format",
    ),
    **_accepted(
        "a request is known by the header x-request-id",
        "request_id",
        "rid",
        "session_id",
        "chat_id",
    ),
    **_accepted(
        "what is cached does not depend on it", "cache_salt", "cache_prompt", "extra_key", "id_slot"
    ),
    **_accepted("answers carry `timings`", "timings_per_token", "return_progress"),
}
OPENAI: Mapping[str, Extra] = {
    **SAMPLING,
    **_neutral_only("answers are text", modalities=(["text"],)),
    **_neutral_only(
        "answers are text; a clip is an input_audio part of a message",
        audio=(),
    ),
    **_neutral_only("the model calls no tools", tools=([],), tool_choice=("none", "auto")),
    **_neutral_only(
        "the model calls no functions", functions=([],), function_call=("none", "auto")
    ),
    **_neutral_only("answers are not predicted", prediction=()),
    **_neutral_only("nothing is searched", web_search_options=(), plugins=([],)),
    **_neutral_only("nothing is moderated", moderation=(), safe_prompt=(False,)),
    **_neutral_only(_NO_REASONING, reasoning_effort=("none",)),
    **_neutral_only("say in the question how long the answer should be", verbosity=("medium",)),
    **_accepted("nothing is kept by user", "user", "safety_identifier"),
    **_accepted("nothing is stored", "metadata", "store"),
    **_accepted("there are no tools", "parallel_tool_calls"),
    **_accepted("there is one tier", "service_tier"),
    **_accepted(
        "what is cached does not depend on it",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    ),
}
STREAM_OPTIONS: Mapping[str, Extra] = {
    **_accepted("nothing is padded", "include_obfuscation"),
    **_neutral_only("usage is in the last chunk", continuous_usage_stats=(False,)),
}
TRANSCRIPTION: Mapping[str, Extra] = {
    **_neutral_only("transcripts are sent whole", stream=(False,)),
    **_neutral_only("no times of words are made", timestamp_granularities=([],)),
    **_neutral_only("there are no log-probabilities of transcripts", include=([],)),
    **_neutral_only(
        "a clip longer than is heard as one is cut by `long_audio`", chunking_strategy=("auto",)
    ),
    **_neutral_only(
        "speakers are not told apart",
        known_speaker_names=([],),
        known_speaker_references=([],),
    ),
}
_LABELS = _accepted("it labels and asks for nothing", "id", "cache_control", "metadata")
MESSAGE: Mapping[str, Extra] = {
    **_LABELS,
    **_accepted("the model's template has no place for it", "name"),
    **_accepted(_NO_REASONING, "reasoning_content", "reasoning", "reasoning_details", "thinking"),
    **_neutral_only("the model never refuses", refusal=("",)),
    **_neutral_only("the model makes none", annotations=([],)),
    **_neutral_only("the model does not speak", audio=()),
    **_neutral_only("the model calls no tools", tool_calls=([],)),
    **_neutral_only("the model calls no functions", function_call=()),
    **_neutral_only("the last turn is the user's", prefix=(False,)),
}
PART: Mapping[str, Extra] = {
    **_LABELS,
    **_accepted("it labels and asks for nothing", "uuid", "index"),
    **_accepted("clips are heard whole", "detail"),
    **_neutral_only("texts carry none", annotations=([],), citations=([],)),
}
FILE: Mapping[str, Extra] = {
    **_LABELS,
    **_accepted("clips are heard whole", "detail"),
    **_accepted(
        "what a file is, is read from its bytes",
        "name",
        "filename",
        "mime_type",
        "media_type",
        "content_type",
    ),
}
