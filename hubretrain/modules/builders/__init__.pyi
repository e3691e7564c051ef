from .build import build_module as build_module
