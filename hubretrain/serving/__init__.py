"""The HTTP server of an export; an extra: `hubretrain[serve]`.

`serve` starts it; `app` has the routes; `batch_queue` is the bounded queue before the model;
`limits`, `body_limits` and `connections` bound what a request may cost; `tf_serving` reads and
writes the requests of TensorFlow Serving's REST API; `prometheus` keeps the metrics.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
