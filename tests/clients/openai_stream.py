"""Streams a translation with the openai package, and checks it against the whole answer.

usage: openai_stream.py BASE_URL
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Please restart the computer to finish the installation."}]

whole = client.chat.completions.create(model=model, messages=messages)
text = whole.choices[0].message.content
assert "Computer" in text, text
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

parts = list(
    client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
)
streamed = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
assert streamed == text, (streamed, text)
assert parts[-1].usage == whole.usage, parts[-1]
assert len(parts) > 4, "the text came in one piece"

logprobs = client.chat.completions.create(
    model=model, messages=messages, logprobs=True, top_logprobs=3, max_tokens=4
)
content = logprobs.choices[0].logprobs.content
assert len(content) == 4 and all(len(token.top_logprobs) == 3 for token in content), content
assert logprobs.choices[0].finish_reason == "length"

completion = client.completions.create(model=model, prompt=">>de<<I know.<sep>")
assert completion.choices[0].text.strip(), completion

try:
    client.chat.completions.create(model="no-such-model", messages=messages)
    raise AssertionError("an unknown model was served")
except openai.NotFoundError as error:
    assert "no-such-model" in str(error), error

try:
    client.chat.completions.create(model=model, messages=messages, temperature=-1)
    raise AssertionError("a temperature below zero was taken")
except openai.BadRequestError as error:
    assert error.body["param"] == "temperature", error.body

print("streamed:", streamed)
