"""Every name of PySpark's that is not public and that this package uses; a test fails if one of them is gone or has changed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession


def java_context(session: "SparkSession") -> Any:  # noqa: ANN401 - Java's objects have no type here
    """Spark's own context, for what the one in Python does not show; None once it was stopped."""
    java: Any = session.sparkContext._jsc  # noqa: SLF001 - it has no public name
    return None if java is None or java.sc().isStopped() else java.sc()


def has_java() -> bool:
    """Return whether this process has started its Java, of which there is one."""
    from pyspark import SparkContext

    return SparkContext._gateway is not None  # noqa: SLF001 - it has no public name


def forget_java() -> None:
    """Let another attempt start another Java, since that of this process has ended."""
    from pyspark import SparkContext

    SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001 - they have no public name


def launch_java(conf: "SparkConf", output: Any) -> Any:  # noqa: ANN401 - an open file, and a gateway of py4j
    """Start Java, which writes to an open file: nobody wants its output on a terminal."""
    from pyspark.java_gateway import launch_gateway

    return launch_gateway(conf, {"stdout": output, "stderr": output})


def with_defaults(conf: "SparkConf", gateway: Any) -> "SparkConf":  # noqa: ANN401 - a gateway of py4j
    """Return a configuration over the one that Java has read from `spark-defaults.conf`."""
    from pyspark import SparkConf

    return SparkConf(_jvm=gateway.jvm).setAll(conf.getAll())


def give_up_after_a_minute(session: Any) -> None:  # noqa: ANN401 - a session of Spark Connect
    """Let the client of a session try no longer than about a minute to reach a server that has gone, instead of ten."""
    from pyspark.sql.connect.client.retries import DefaultPolicy

    session.client.set_retry_policies([DefaultPolicy(max_retries=6)])
