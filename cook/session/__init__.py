"""Binds the passes of a recipe to a model; the only place where passes are combined.

session = Session(passes, model, total_steps=..., steps_per_epoch=...)     attach, in recipe order
optimizer = AdamW(session.module.parameters()); session.bind(optimizer)
for step, batch in enumerate(batches):
    session.before_step(step)
    terms = session.module(batch)           {"task": ..., "logits": ..., ...}, weighted
    sum(terms.values()).backward()
    optimizer.step()                        hard masks are applied here
    session.after_step()
session.finish()                            restores plain modules; model.save_pretrained as usual
"""

from cook.session.session import Session

__all__ = ["Session"]
