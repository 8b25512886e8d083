"""The loop of the benchmark in LangGraph or in pydantic-ai.

Prints what it runs, then reads orders from stdin, each a line of JSON with `prompts` and how many conversations go on
`at_once`, and answers each with a line: the `answers`, and what they took in seconds, `cpu` and `wall`. Importing,
building the agent and reading orders are outside of what is measured.
"""

import argparse
import asyncio
import importlib.metadata
import json
import resource
import sys
import time


# Not run in a thread by either framework, because it is asynchronous; that is the cheapest kind of tool in both.
async def calculate(expression: str) -> str:
    """Multiplies two integers, for example "6 * 7", and returns the product."""
    left, right = expression.split(" * ")
    return str(int(left) * int(right))


def langgraph(args):
    from langchain.agents import create_agent
    from langchain_anthropic import ChatAnthropic

    model = ChatAnthropic(model=args.model, base_url=args.base_url, api_key="none", max_tokens=args.max_tokens)
    agent = create_agent(model, tools=[calculate])

    async def run(prompt):
        # The limit counts steps of the graph, of which a turn has two; the default of 25 is short of 13 turns.
        config = {"recursion_limit": 1000}
        state = await agent.ainvoke({"messages": [{"role": "user", "content": prompt}]}, config)
        return str(state["messages"][-1].text)

    return run, ("langgraph", "langchain", "langchain-anthropic")


def pydantic_ai(args):
    from pydantic_ai import Agent, UsageLimits
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(base_url=args.base_url, api_key="none")
    model = AnthropicModel(args.model, provider=provider)
    agent = Agent(model, tools=[calculate], model_settings={"max_tokens": args.max_tokens})

    async def run(prompt):
        result = await agent.run(prompt, usage_limits=UsageLimits(request_limit=None))
        return result.output

    return run, ("pydantic-ai-slim",)


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(run, prompts, at_once):
    answers = [None] * len(prompts)
    waiting = iter(enumerate(prompts))

    async def work():
        for index, prompt in waiting:
            answers[index] = await run(prompt)

    before, started = cpu(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return {"answers": answers, "wall": time.perf_counter() - started, "cpu": cpu() - before}


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=["langgraph", "pydantic-ai"])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    args = parser.parse_args()

    run, packages = {"langgraph": langgraph, "pydantic-ai": pydantic_ai}[args.framework](args)
    print(json.dumps({"versions": [f"{name} {importlib.metadata.version(name)}" for name in packages]}), flush=True)
    # Nothing else goes on between orders, so the loop may be blocked.
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(await measure(run, order["prompts"], order["at_once"])), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
