"""Few-shot adaptation as a service: support sets in, tasks and their predictions out, over HTTP.

server.py    Ray Serve: replicas, the port, the token, the end
app.py       HTTP: what is asked, what is answered, within which time
requests.py  what a request may hold
openai.py    OpenAI's routes: parameters.py what they take, answers.py and pieces.py what is said, a token a step,
             shapes.py and events.py how that is written
worker.py    the one thread that has the model, and what waits for it
batches.py   the base: several tasks as one batch
tasks.py     adapted tasks on disk and in memory
metrics.py   Prometheus
"""
