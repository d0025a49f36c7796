"""What the lessons share and what is not the lesson: data, models, training, evaluation, figures."""
