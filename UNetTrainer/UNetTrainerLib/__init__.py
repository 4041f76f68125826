"""UNetTrainer's library: from a folder of labelled cases to a model that KidneySeg picks up."""
