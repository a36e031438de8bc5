"""stub"""
def rematerialise(model): return model
