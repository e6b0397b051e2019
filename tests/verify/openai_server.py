"""A small server of the OpenAI API around transformers and peft, as other people's servers are.

openai_server.py BASE ADAPTER prints its port. It serves the models `base` and `tuned`. The first
part of a path says how it behaves:

vllm      as vLLM does: token ids in its answers, /tokenize for messages, prompt_logprobs
ignores   the same, but the adapter is loaded and not applied
template  the same with another chat template, and no token ids in chat
llama     as llama.cpp's server does: /apply-template, and /tokenize for text
counts    the bare API for chats: it counts tokens, and refuses fields that it does not know
locked    wants a key, which is `open`
slow      answers after a second
page      is no API at all
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE, ADAPTER = sys.argv[1:]
TOKENIZER = AutoTokenizer.from_pretrained(ADAPTER)
MODEL = PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), ADAPTER).eval()
OTHER_TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{% endfor %}"
                  "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
KNOWN = {"model", "messages", "max_tokens", "temperature", "seed"}
LOCK = threading.Lock()


class Refusal(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve(None)

    def do_POST(self):
        self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def serve(self, body):
        mode, _, path = self.path.lstrip("/").partition("/")
        if mode == "slow":
            time.sleep(1)
        if mode == "page":
            return self.send(200, "<html>hello</html>")
        if mode == "locked" and self.headers.get("Authorization") != "Bearer open":
            return self.send(401, {"error": {"message": "no key"}})
        try:
            with LOCK:
                answer = Server(mode).answer(path, body)
        except Refusal as refusal:
            return self.send(400, {"error": {"message": str(refusal)}})
        if answer is None:
            return self.send(404, {"detail": "Not Found"})
        return self.send(200, answer)

    def send(self, status, value):
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server:
    def __init__(self, mode):
        self.mode = mode
        self.like_vllm = mode in ("vllm", "ignores", "template", "locked", "slow")

    def answer(self, path, body):
        if path == "v1/models":
            parent = {"parent": "base"} if self.like_vllm else {}
            return {"data": [{"id": "base"}, {"id": "tuned", **parent}]}
        if self.mode == "counts" and body and (more := body.keys() - KNOWN):
            raise Refusal(f"unknown fields: {sorted(more)}")
        if path == "v1/chat/completions":
            ids = self.prompt(body["messages"])
            return self.completed(body, ids, lambda text: {"message": {"content": text}},
                                  tells=self.mode in ("vllm", "ignores", "locked"))
        if path == "v1/completions" and self.mode != "counts":
            reply = self.completed(body, body["prompt"], lambda text: {"text": text},
                                   tells=self.like_vllm)
            if self.like_vllm and "prompt_logprobs" in body:
                reply["choices"][0]["prompt_logprobs"] = self.logprobs(body)
            return reply
        if path == "tokenize" and self.like_vllm:
            return {"tokens": self.prompt(body["messages"])}
        if path == "tokenize" and self.mode == "llama":
            text = body.get("content", "")
            return {"tokens": TOKENIZER(text, add_special_tokens=False)["input_ids"]}
        if path == "apply-template" and self.mode == "llama":
            return {"prompt": TOKENIZER.decode(self.prompt(body["messages"]))}
        return None

    def prompt(self, messages):
        template = OTHER_TEMPLATE if self.mode == "template" else None
        text = TOKENIZER.apply_chat_template(messages, chat_template=template, tokenize=False,
                                             add_generation_prompt=True)
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    def model(self, body):
        if body["model"] == "tuned" and self.mode != "ignores":
            return MODEL
        if body["model"] in ("base", "tuned"):
            return None
        raise Refusal("no such model")

    def forward(self, body, call):
        model = self.model(body)
        with torch.inference_mode():
            if model is not None:
                return call(model)
            with MODEL.disable_adapter():
                return call(MODEL)

    def completed(self, body, ids, shape, *, tells):
        inputs = torch.tensor([ids])
        end = TOKENIZER.convert_tokens_to_ids("<|end|>")
        out = self.forward(body, lambda model: model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False,
            max_new_tokens=body["max_tokens"], eos_token_id=[end, TOKENIZER.eos_token_id],
            pad_token_id=end))
        new = out[0, len(ids):].tolist()
        choice = shape(TOKENIZER.decode(new, skip_special_tokens=True))
        reply = {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}
        if tells and body.get("return_token_ids"):
            choice["token_ids"] = new
            reply["prompt_token_ids"] = ids
        return reply

    def logprobs(self, body):
        ids = body["prompt"]
        logits = self.forward(body, lambda model: model(input_ids=torch.tensor([ids])).logits[0])
        said = torch.log_softmax(logits.float(), -1)
        return [None] + [{str(token): {"logprob": float(said[at, token])}}
                         for at, token in enumerate(ids[1:])]


if __name__ == "__main__":
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(http.server_port, flush=True)
    http.serve_forever()
