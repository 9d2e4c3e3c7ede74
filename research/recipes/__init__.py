"""Jobs of several trainings. A stage is a workdir or a folder that is whole or not there, so the
same command goes on where it was cut."""
