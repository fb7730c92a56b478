"""The cost model: how long a step takes, with a band of error; read by simulator, schedulers and planners alike."""
