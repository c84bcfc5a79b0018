"Package metadata for pip, read from settings.ini: the one place where version, dependencies and scripts are written."

from configparser import ConfigParser

from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {
    k.removesuffix("_requirements"): cfg[k].split() for k in cfg if k.endswith("_requirements")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    license="Apache-2.0",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    url=cfg["git_url"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_path"] + "*"]),
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    package_data={cfg["lib_path"]: ["data/**", "prompts/*.md", "py.typed"]},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
