"""Clients of other projects, as they come, in environments of their own: the service's vectors are those of `encode`."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import refbert
from jobs.memory.student_memory import student_run
from jobs.sections import ServeConfig
from tests.integration.jobs.adapting.memory import ASKED, TEXTS
from tests.integration.jobs.service.conftest import address_of
from tests.store_clients import environment_with

MODEL = "text-embedding-3-small"
"""What clients ask for whose user has not changed it: the service answers with the student it has."""

IN_PYTHON = {
    "langchain": (
        "langchain-openai==1.7.*",
        "from langchain_openai import OpenAIEmbeddings\n"
        "client = OpenAIEmbeddings(model=model, base_url=address, api_key='none', check_embedding_ctx_length=False)\n"
        "vectors = client.embed_documents(texts)",
    ),
    "llama-index": (
        "llama-index-embeddings-openai==0.7.*",
        "from llama_index.embeddings.openai import OpenAIEmbedding\n"
        "client = OpenAIEmbedding(model=model, api_base=address, api_key='none')\n"
        "vectors = client.get_text_embedding_batch(texts)",
    ),
    "litellm": (
        "litellm==1.*",
        "import litellm\n"
        "answer = litellm.embedding('openai/' + model, input=texts, api_base=address, api_key='none')\n"
        "vectors = [item['embedding'] for item in answer.data]",
    ),
    "haystack": (
        "haystack-ai==3.*",
        "from haystack.components.embedders import OpenAITextEmbedder\n"
        "from haystack.utils import Secret\n"
        "client = OpenAITextEmbedder(model=model, api_base_url=address, api_key=Secret.from_token('none'))\n"
        "vectors = [client.run(text)['embedding'] for text in texts]",
    ),
}

IN_JAVASCRIPT = """
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany } from "ai";
const { model, address, texts } = JSON.parse(process.argv[2]);
const provider = createOpenAI({ baseURL: address, apiKey: "none" });
const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(model), values: texts });
console.log(JSON.stringify(embeddings));
"""


@pytest.fixture
def asked(memory, store_url):
    """What a client is told, as JSON, and the vectors (texts, dim) that it is to get."""
    memory.add(TEXTS[:70])
    memory.adapt()
    with refbert.load(memory.folder, store_url) as reader:
        wanted = reader.encode(ASKED)
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=0.5)})
    config, folder = student_run(config, str(memory.folder))
    with address_of(config, str(folder)) as address:
        yield json.dumps({"model": MODEL, "address": f"{address}/v1", "texts": ASKED}), wanted


def said(command, **options):
    """The vectors that a client prints. It finds nothing of this project, and no other host."""
    environment = {
        "PATH": os.environ["PATH"],
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "client",
    ["langchain", *(pytest.param(each, marks=pytest.mark.long) for each in IN_PYTHON if each != "langchain")],
)
def test_a_client_in_python_gets_the_vectors_of_encode(asked, tmp_path, client):
    given, wanted = asked
    package, code = IN_PYTHON[client]
    python = environment_with(tmp_path / "environment", package)
    begin = "import json, sys\nmodel, address, texts = json.loads(sys.argv[1]).values()\n"
    vectors = said([str(python), "-c", f"{begin}{code}\nprint(json.dumps(vectors))", given], cwd=tmp_path)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


@pytest.mark.long
def test_vercels_sdk_gets_the_vectors_of_encode(asked, tmp_path):
    given, wanted = asked
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("no node on this machine")
    (tmp_path / "ask.mjs").write_text(IN_JAVASCRIPT)
    installed = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "ai@7", "@ai-sdk/openai@4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"the client cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    np.testing.assert_allclose(said(["node", "ask.mjs", given], cwd=tmp_path), wanted, atol=1e-5)
