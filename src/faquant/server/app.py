"""Builds the ASGI application."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from .api import chat, completions, endpoints, missing, responses, stored
from .errors import ErrorResponse, handle_errors
from .http.hosts import Hosts
from .http.middleware import Access, Supervisor
from .page import files as chat_page
from .service import VERSION, Service


def make_app(service: Service) -> FastAPI:
    """Create the ASGI application for a service whose engine has been started."""
    app = FastAPI(
        title="faquant",
        version=VERSION,
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
        # Also keeps FastAPI from documenting 422, which is never sent.
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    app.state.service = service
    for module in (chat, chat_page, completions, endpoints, responses, stored):
        app.include_router(module.router)
    handle_errors(app)
    missing.handle_unknown_paths(app)
    app.add_middleware(Supervisor, timeout=service.config.request_timeout)
    hosts = service.config.allowed_hosts
    if hosts is not None and "*" not in hosts:
        app.add_middleware(Hosts, names=hosts)
    app.add_middleware(Access, gate=service.gate, metrics=service.metrics, api_key=service.config.api_key)
    if service.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app
