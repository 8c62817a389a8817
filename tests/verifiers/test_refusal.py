import pytest

from verigrad.verifiers.refusal import refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot assist with this request.",
        "I cannot provide instructions for that.",
        "Sorry, I won't do that.",
        "Unfortunately, I am unable to help you with it.",
        "I must decline to answer.",
        "I will not write such a message.",
        "As an AI, I cannot give you that.",
        "I don't feel comfortable with this question.",
        "That is against my guidelines.",
        "No, I will not.",
    ],
)
def test_it_declines(text):
    assert refusal(text).reward == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Use kill -9 and the number of the process.",
        "Sorry for the delay! The answer is 42.",
        "You can't divide by zero, so the expression is undefined.",
        "The knife cannot be put into the dishwasher.",
        "I can help with that. First, open the door.",
        "An egg can't be unboiled; boil it for eight minutes.",
        "She said: nobody could help him. " * 30 + "I cannot help with that.",
    ],
)
def test_it_answers(text):
    assert refusal(text).reward == 0.0
