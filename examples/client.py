"""Streams one answer from a Weir server: client.py HOST:PORT PROMPT (see examples/README.md)."""
import sys

import grpc
from weir.v1 import generate_pb2, generate_pb2_grpc

address, prompt = sys.argv[1:3]
request = generate_pb2.GenerateRequest()
request.chat.messages.add(role="user", content=prompt)
request.stopping.max_tokens = 200
with grpc.insecure_channel(address) as channel:
    stub = generate_pb2_grpc.GenerationServiceStub(channel)
    try:
        for event in stub.Generate(request, timeout=60):
            print(event.delta.text, end="", flush=True)
            if event.HasField("finished"):
                print(f"\n[{event.finished.usage.completion_tokens} tokens]")
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
