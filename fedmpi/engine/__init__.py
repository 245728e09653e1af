"""The engine: conversations, virtual clients, dispatch, evaluation, the round. It knows no algorithm and no report."""
