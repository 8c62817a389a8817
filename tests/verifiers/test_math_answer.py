"""What math_answer calls right and wrong: its policy as a table of graded cases, written by hand."""

# ruff: noqa: E501, RUF001 - a table is read by columns, and holds look-alike signs on purpose

import time

import pytest

from verigrad.verifiers.math_answer import math_answer, same_value
from verigrad.verifiers.math_extract import last_box

# (the problem's answer, what stands in the box)
RIGHT = [
    # integers, fractions, decimals
    ("42", "42"), ("42", "42.0"), ("42", "+42"), ("-7", "-7"), ("-5", "–5"), ("-5", "−5"), ("0", "-0"),
    (42, "42"), (0.5, r"\frac{1}{2}"), ("7", "007"), ("42", "42."), ("42", "$42$"), ("42", r"\(42\)"),
    ("0.5", "1/2"), ("1/2", "0.5"), (r"\frac{1}{2}", r"\frac12"), (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", r"\tfrac12"), (r"\frac{1}{2}", "½"), (r"\frac{3}{4}", r"\frac{6}{8}"), ("0.75", "¾"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"), (r"-\frac{3}{4}", r"\frac{3}{-4}"), (r"\frac{1}{2}", r"\left(\frac{1}{2}\right)"),
    (r"\frac{7}{3}", "2 1/3"), (r"\frac{7}{3}", r"2\frac{1}{3}"), (r"-\frac{7}{3}", "-2 1/3"), ("2.5", "2½"),
    (r"0.\overline{3}", r"\frac{1}{3}"), (r"\frac{1}{3}", r"0.\overline{3}"), ("1/6", "0.1(6)"),
    (r"\frac{1}{7}", r"0.\overline{142857}"), (".5", "0.50"), ("5", "((5))"), ("5", "{5}"), ("5", r"\mathbf{5}"),
    ("5", r"\text{5}"), ("5", r"\boxed{5}"),
    # thousands, scientific notation
    ("10000", r"10\,000"), ("10000", "10,000"), ("10000", "10{,}000"), ("10000", "10 000"), ("10000", r"10,\!000"),
    ("1,234,567", "1234567"), ("1234567.5", "1,234,567.5"), ("1000", "1e3"), ("1000", "1E3"), ("0.001", "1e-3"),
    ("1000", r"10^3"), ("1000", r"1 \times 10^{3}"), (r"6.02\times10^{23}", "602e21"),
    (r"6.02\times10^{-23}", r"6.02 \cdot 10^{-23}"), ("0.0000001", "10^{-7}"), ("10^{-7}", "1e-7"),
    ("1024", "2^{10}"), ("1024", "2^10"), ("1024", "2**10"), ("-4", "-2^2"), ("120", "5!"), ("10", r"\binom{5}{2}"),
    ("5050", r"\sum_{k=1}^{100} k"), ("391", r"17 \cdot 23"), ("391", "17*23"), ("6", "2(3)"),
    (r"\frac{1}{2004!}", r"\frac{1}{2004!}"), (r"\frac{1}{2^{99}}", "2^{-99}"), ("2^{1000}", r"4^{500}"),
    # percents, units, money, bases
    ("50%", r"50\%"), ("50", r"50\%"), ("50%", "50"), ("50%", "0.5"), ("0.5", r"50\%"), (r"12.5\%", r"\frac{1}{8}"),
    ("5", r"5\text{ cm}"), (r"5\text{ cm}", "5"), (r"5\text{ cm}", "5 cm"), (r"5\text{ m}", r"500\text{ cm}"),
    (r"5\text{ cm}", r"5\,\mathrm{cm}"), (r"2\text{ hours}", r"120\text{ minutes}"), ("1 km", r"1000\text{ m}"),
    (r"36\text{ km/h}", r"10\text{ m/s}"), (r"4\text{ cm}^2", r"4\text{ square centimeters}"),
    ("5 apples", "5"), ("12", r"12\text{ apples}"), (r"60^\circ", "60"), ("60", r"60^{\circ}"), ("60", "60°"),
    (r"60^\circ", r"60\text{ degrees}"), (r"\$5", "5"), ("5", r"\$5"), (r"\$5", "5 dollars"), (r"\$1,250", "1250"),
    (r"2\sqrt{3}\text{ cm}", r"\sqrt{12}"), ("1010_2", "1010_2"), ("1010_2", "1010_{2}"), ("1010_2", "1010"),
    ("1010_2", "12_8"), ("5", r"\text{five, i.e. } 5"),
    # roots, constants, complex numbers
    (r"\sqrt{2}", "√2"), (r"\sqrt{2}", "sqrt(2)"), (r"\sqrt2", r"\sqrt{2}"), (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), ("5", r"\sqrt{25}"), (r"2\pi", "2π"), ("2\\pi", "2pi"),
    ("-1", r"e^{i\pi}"), (r"\sqrt{-1}", "i"), ("i", r"\sqrt{-1}"), ("3+4i", "4i+3"), ("-1", "i^2"),
    ("5", "(2+i)(2-i)"), (r"\ln 8", r"3\ln 2"), ("3", r"\log_2 8"), (r"\frac{\pi}{4}", r"\arctan 1"),
    (r"\frac{\sqrt{3}}{2}", r"\sin\frac{\pi}{3}"), (r"\sqrt[3]{8}", "2"),
    (r"1+\sqrt{2}", r"\sqrt{2}+1"), (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"), ("1", r"\sin^2 1+\cos^2 1"),
    # algebra
    ("x^2+2x+1", "(x+1)^2"), ("2n+1", "1+2n"), (r"\frac{x+1}{x-1}", r"\frac{1+x}{x-1}"), ("2xy", "2yx"), ("xy", "yx"),
    ("x^2", "x*x"), (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"), (r"\sqrt{x^2}", "|x|"), ("(-1)^n", r"\cos(n\pi)"),
    ("0.5x", r"\frac{x}{2}"), (r"\sin 2x", r"2\sin x\cos x"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    # equations
    ("9", "x=9"), ("x=9", "9"), ("x=9", "x = 9"), ("x=9", "9 = x"), ("5", r"AB = 5"), ("60", r"\angle ABC = 60^\circ"),
    ("5", "2+3=5"), ("5", "x=2+3=5"), ("y=2x+1", "2x+1"), ("y=2x+1", "2x-y+1=0"), ("2x+3y=6", "4x+6y=12"),
    ("f(x)=x^2", "x^2"), ("5", r"\text{Area} = 5"), ("x=1,y=2", "y=2, x=1"), ("x_1=2", "2"),
    # lists, sets, tuples
    ("1,2", "2,1"), ("1, 2", "1 and 2"), ("1 or 2", "2,1"), (r"1\text{ and }2", "1,2"), ("x=1,2", "x=2 or x=1"),
    (r"\{1,2\}", r"\{2,1\}"), (r"\{1,2\}", "1,2"), (r"\{5\}", "5"), ("(1,2)", "(1,2)"), ("(1,2)", r"\left(1, 2\right)"),
    (r"(\frac12, 3)", "(0.5, 3)"), ("(1,2),(3,4)", "(3,4), (1,2)"), (r"\pm 3", "3,-3"), ("3,-3", r"\pm 3"), ("-3,3", "±3"),
    (r"1\pm\sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"), (r"\{100,200\}", "100,200"), (r"\emptyset", "∅"), ("1,2,3", "3; 2; 1"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix}1\\ \frac12\end{pmatrix}", r"\begin{pmatrix}1\\0.5\end{pmatrix}"), ("1:2", "1:2"), ("1:2", "2:4"),
    # intervals and inequalities
    (r"(-\infty,2)", "x<2"), ("x<2", r"(-\infty,2)"), ("x<2", "2>x"), (r"[2,\infty)", r"x\geq 2"), ("x>=2", r"x \ge 2"),
    (r"(-\infty,2)\cup(5,\infty)", "x<2 or x>5"), ("x<2 or x>5", r"(5,\infty)\cup(-\infty,2)"), ("-2<x<2", "|x|<2"),
    ("(-2,2)", "-2<x<2"), ("[1,5)", r"1\le x<5"), ("1<x<5", "x>1 and x<5"), (r"x\in(1,2)", "(1,2)"),
    (r"\mathbb{R}", r"(-\infty,\infty)"), ("all real numbers", r"\mathbb{R}"), (r"x\ne 3", r"\mathbb{R}\setminus\{3\}"),
    (r"(-\infty,3)\cup(3,\infty)", r"x \neq 3"), (r"\infty", "∞"), (r"-\infty", r"-\infty"),
    ("x<2 or x>5", r"x<2 \text{ or } x>5"), (r"[0,\sqrt{2}]", r"0\le x\le\sqrt2"),
    # spellings of competition answers
    ('\\frac{\\sqrt{2}+\\sqrt{6}}{4}', '\\sin 75^\\circ'),
    ('60', '60\\text{ miles per hour}'),
    ('\\frac{9}{19}', '\\dfrac{9}{19}'),
    ('2k', '2k'),
    ('(2,\\infty)', '(2, +\\infty)'),
    ('x \\in [-2,7]', '[-2, 7]'),
    ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3,\\pi/2)'),
    ('p - q', 'p-q'),
    ('\\text{Evelyn}', 'Evelyn'),
    ('1,-2', 'x=1,-2'),
    ('6 - 5i', '6-5i'),
    ('-50', '-50'),
    ('\\frac{3}{56}', '3/56'),
    ('2220', '2,220'),
    ('70 \\sqrt{2}', '70\\sqrt2'),
    ('10\\%', '10'),
    ('\\$18.90', '18.9'),
    ('4343_6', '4343_6'),
    ('(-\\infty,-2)\\cup(-2,3)', '(-\\infty, -2) \\cup (-2, 3)'),
    ('5.4 \\text{ cents}', '5.4'),
    ('3\\text{ and }5', '3,5'),
    ('11\\sqrt2', '11\\sqrt{2}'),
    ('\\frac{1}{2}\\pi', '\\pi/2'),
    ('a^2b', 'ba^2'),
    ('1 \\frac{4}{5}', '9/5'),
    ('y = -2x + 3', 'y=3-2x'),
    ('x^3+3x-6', 'x^3 + 3x - 6'),
    ('\\begin{pmatrix} -1/3 \\\\ 2/3 \\\\ 5/3 \\end{pmatrix}', '\\begin{pmatrix} -\\frac13 \\\\ \\frac23 \\\\ \\frac53 \\end{pmatrix}'),
    ('\\text{(C)}', 'C'),
    ('C', '\\text{C}'),
    ('2 + \\sqrt{3}', '\\sqrt{3} + 2'),
    ('12', '12 \\text{ ways}'),
    ('144', '\\text{The area is } 144'),
    ('even', '\\text{even}'),
    ('e^2', 'e**2'),
    ('\\ln 2', 'ln(2)'),
    ('\\frac{1}{e}', 'e^{-1}'),
    ('\\log_{10} 2', '\\log 2'),
    ('x=2, y=3', 'y=3,x=2'),
    ('(2,3)', '(x,y)=(2,3)'),
    ('3^{2/3}', '\\sqrt[3]{9}'),
    ('\\{x | x>2\\}', 'x>2'),
    ('\\frac{a}{b}', 'a/b'),
    ('0.1+0.2', '0.3'),
    ('1.5e-7', '1.5 \\times 10^{-7}'),
    ('4!', '24'),
    ('\\lfloor 3.7\\rfloor', '3'),
    ('2^{n+1}-1', '2\\cdot 2^n-1'),
    ('C(5,2)', 'C(5,2)'),
    ('3x+C', '3x + C'),
    ('\\frac{2}{3}\\text{ hour}', '40\\text{ minutes}'),
    ('7\\text{ cm}^2', '7 cm^2'),
    ('1:2:3', '2:4:6'),
    ('9:30', '9:30'),
    ('(-1,1)', '|x|<1'),
    ('[-1,1]', '-1 \\leq x \\leq 1'),
    ('5\\text{ kg}', '5kg'),
    ('0', '0.00'),
    ('120^\\circ', '120 degrees'),
    ('\\sqrt{5}-1', '\\frac{4}{\\sqrt5+1}'),
    ('no', '\\text{No}'),
    ('\\frac{5\\pi}{6}', '5\\pi/6'),
    ('13', '13.0'),
    ('2021', '2021.'),
    ('\\{-3,3\\}', 'x=\\pm3'),
    ('x=3 or x=-3', '\\pm 3'),
    ('k=5', '5'),
    ('\\alpha=30^\\circ', '30'),
    ('1000000', '10^6'),
    ('1000000', '1\\,000\\,000'),
    ('1/2', '\\frac{1}{2}.'),
    ('-\\frac12', '-1/2'),
    ('-1/2', '\\frac{-1}{2}'),
    ('3', '\\text{Answer: }3'),
    ('3', 'n = 3'),
    ('(3, 4)', '( 3 , 4 )'),
    ('x+y=5', 'y+x=5'),
    ('\\vec{v}=(1,2)', '(1,2)'),
    ('\\tan\\theta', '\\frac{\\sin\\theta}{\\cos\\theta}'),
    ('A', 'A'),
    ('A and C', 'C, A'),
    ('(0,1)\\cup\\{2\\}', '\\{2\\}\\cup(0,1)'),
    ('2sqrt(3)', '2\\sqrt{3}'),
    ('(1+sqrt(5))/2', '\\frac{1+\\sqrt5}{2}'),
    ('x^(2n)', 'x^{2n}'),
    ('10!', '3628800'),
    ('25\\pi', '25\\pi \\text{ square units}'),
    ('8\\pi\\text{ cm}^3', '8\\pi'),
    ('17', '\\textbf{17}'),
    ('17', '{\\bf 17}'),
    ('17', '\\color{red}{17}'),
    ('17', '\\underline{17}'),
    # spellings of model-written answers
    ("1,2", r"x=1\ \text{or}\ x=2"), ("x<1 or x>2", r"(-\infty,1)\bigcup(2,\infty)"), (r"\sqrt[3]4", "4^{1/3}"), ("5", r"{\Large 5}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\mathbf{v}=\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left(\begin{array}{c}1\\2\end{array}\right)"), ("72", r"\text{72 clips}"), ("18", r"\$18\text{ per day}"),
    ("210", r"210~\mathrm{cm^2}"), (r"210\text{ cm}^2", r"210\,\mathrm{cm^2}"), ("1+2i", r"1+2\mathrm{i}"), ("B", "(b) 5"), (r"-1\text{ if odd}", r"-1\text{ if odd}"),
    (r"\frac{\sqrt5-1}{2}", r"e^{2i\pi/5}+e^{-2i\pi/5}"), (r"\frac{1+\sqrt5}{4}", r"\cos 36^\circ"), (r"n!\,m!", r"m!\,n!"), ("(-1)^{n+m}", "(-1)^{n-m}"),
    # text and choices
    ("east", "East"), ("east", r"\text{east}"), ("no solution", r"\text{No solution}"), ("yes", "Yes."), ("B", "B"), ("B", "(B)"),
    ("B", r"\text{(B)}"), ("B", r"\textbf{B}"), ("(B)", "b"), ("B", "B."), ("B", "B) 5"), ("B", r"\textbf{(B)}\ 5"), ("True", "true"),
    ("Monday", r"\textit{Monday}"), ("black and white", "white and black"),
    (["7", "7.5"], "7.5"), (["1/3", "0.33"], "0.33"), (r"so it is \boxed{6}", "6"), ("6 + 6 = 12\n#### 12", "12"),
    # labels, chains, names and congruences
    ('x^2+1', 'f(x)=x^2+1'), ('(2,3)', 'x=2, y=3'), ('x=2, y=3', '(2,3)'), ('5', r"\text{five}"), ('5', r"\text{Five}"), ('12', r"\text{twelve}"),
    ('4', r"\log_2 16 = 4"), ('4', 'P(2)=4'), ('4', 'a_5 = 4'), ('4', 'n=4'), ('4', r"\frac{8}{2}=4"), ('4', r"S_{\triangle ABC} = 4"),
    ('4', r"\text{gcd}(8,12)=4"), ('4', r"\gcd(8,12) = 4"), ('4', r"\lvert x \rvert = 4"), ('4', r"\det A = 4"), ('4', r"\min = 4"),
    ('4', r"\text{Max value: } 4"), ('4', '|S| = 4'), ('4', r"\#S = 4"), ('4', 'x^2+y^2=4'), ('4', 'AB^2 = 4'), ('4', r"\overline{AB} = 4"),
    ('4', '2^{2}=4'), ('4', 'a^2+b^2 = 4'), (r"[0,2\pi)", r"0\leq\theta<2\pi"), ('3', r"3\,(\text{mod }7)"), ('3', r"3 \mod 7"),
    (r"\frac{1}{2}", r"P(A)=\frac12"), (r"\frac{1}{2}", r"\sin\theta=\frac12"), (r"50\%", '0.50'), ('18', r"\$18.00"),
    ('18', r"18\text{ dollars per day}"), ('2 hours', r"2\text{ h}"), ('7', '7.00'), (r"\frac{n}{n+1}", r"S_n=\frac{n}{n+1}"), ('y=x+1', 'x-y+1=0'),
    ('a=1', '1'), ('(1,2)', '(x_0,y_0)=(1,2)'),
    ("x=1,y=2", "1,2"), ("2,1", "x_1=1, x_2=2"), ("5", "m+n=5"), ("y=2,x=1", "1,2"), ("5", "5 pens"), ("5", "5km"), ("5", "5 red balls"), ("5", "5 m/s"),
]  # fmt: skip
WRONG = [
    # small and large numbers, nothing rounded
    ("10^{-30}", "10^{-31}"), ("0.0000001", "0.0000002"), (r"6.02\times10^{-23}", r"1.6\times10^{-19}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), ("1", "1-10^{-20}"),
    ("10^{20}", "10^{20}+1"), ("1/3", "0.333333333"), (r"\sqrt{2}", "1.41421356"), (r"\pi", "3.14159265"), ("0.33", "1/3"),
    ("42", "43"), ("42", "4.2"), ("42", "-42"), ("0", "10^{-60}"), ("0", "e^{-200}"), ("100", "1000"), ("12", "21"),
    (r"\pi", r"\pi + 10^{-40}"), ("2^{1000}", "2^{1000}+1"), (r"\frac{1}{2}", "2"), ("1234", "1,234.5"),
    # units, percents, bases
    (r"5\text{ cm}", r"5\text{ m}"), ("1010_2", "1010_3"), ("1010_2", "10"), ("10", "1010_2"), ("5 apples", "5 oranges"),
    (r"60^\circ", r"60\text{ cm}"), (r"4\text{ cm}^2", r"4\text{ cm}^3"), ("0.5", r"0.5\%"), ("50%", "0.05"), (r"\$5", "5 cents"),
    (r"5\text{ m/s}", r"5\text{ km/h}"), (r"5\text{ m}", r"500\text{ mm}"),
    # equations
    ("5", "2=5"), ("5", "4=5"), ("5", "x=1=2=3=4=5"), ("9", "3=9"), ("x=9", "y=9"), ("x=9", "x=8"), ("9", "2x=18"), ("x=9", "2x=18"),
    ("y=2x+1", "y=2x-1"), ("y=2x+1", "x=2y+1"), ("x=1,y=2", "x=2,y=1"), ("2x+3y=6", "2x+3y=7"), ("AB=5", "x=5"),
    # text, variables, letters
    ("east", "seat"), ("east", "eats"), ("no", "on"), ("2n+1", "2k+1"), ("n", "N"), ("x", "y"), ("B", "C"), ("B", "(D)"), ("B", "C) B"),
    ("yes", "no"), ("east", "northeast"), ("ABC", "CAB"), ("no solution", "solution"), ("no solution", "0"), ("5", "five hundred"),
    # complex, algebra
    ("3+4i", "3-4i"), ("i", "-i"), ("-1", r"e^{2i\pi}"), ("x^2+1", "x^2-1"), ("(x+1)^2", "x^2+1"), (r"\sqrt{x^2}", "x"), ("x", "x+0.0000001"),
    ("(-1)^n", "1"), (r"2\sqrt{3}", r"3\sqrt{2}"), (r"\log_2 8", r"\log 8"),
    # sets, tuples, intervals
    (r"\{1,2\}", "(1,2)"), ("(1,2)", "1,2"), ("(1,2)", "(2,1)"), ("1,2", "1,2,3"), ("1,2", "1"), ("1", "1,2"), (r"\pm 3", "3"), ("3", r"\pm 3"),
    ("(1,2)", "[1,2]"), ("[1,2)", "(1,2]"), ("x<2", "x>2"), ("x<2", r"x\le 2"), ("x<2", "y<2"), (r"(-\infty,2)", r"(-\infty,2]"), ("1:2", "1:3"),
    (r"(-\infty,2)\cup(5,\infty)", "x<2"), ("|x|<2", "|x|>2"), ("1,1,2", "1,2"), ("(1,2),(3,4)", "(1,2)"), (r"\emptyset", "0"), (r"\infty", r"-\infty"),
    (r"\infty", "10^{100}"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), ("3:05", "6:10"),
    # near misses of competition answers
    ('60', '60\\text{ or }61'),
    ('1/2', '1/2, 1/3'),
    ('5', '-5'),
    ('12', '12x'),
    ('x', '2x'),
    ('2\\pi', '2'),
    ('p-q', 'q-p'),
    ('(3,4)', '[3,4]'),
    ('3', '4-2'),
    ('2021', '2021^2'),
    ('C', '\\text{D}'),
    ('A and C', 'A'),
    ('even', 'odd'),
    ('Evelyn', 'Carla'),
    ('e^2', '2e'),
    ('10!', '9!'),
    ('4343_6', '4343_7'),
    ('9:30', '9:31'),
    ('x+y=5', 'x-y=5'),
    ('(0,1)\\cup\\{2\\}', '(0,1)'),
    ('25\\pi', '25'),
    ('5\\text{ kg}', '5\\text{ g}'),
    ('1', '1=1=2'),
    ('3', '\\text{not }3'),
    ('3', '3 \\text{ is wrong, } 4'),
    ('7', '\\text{any number}'),
    ('7', 'n'),
    ('no', 'n'),
    ('x^2', 'x^{2.0000001}'),
    ('5', '5^1000000000'),
    ('1/3', '0.3'),
    ('\\frac{1}{3}', '0.\\overline{34}'),
    # values changed, doubted or swapped
    ("5", r"5\text{ minus one}"), ("5", "5 minus one"), ("5", r"\text{negative: }5"), ("5", r"\text{minus is }5"), ("5", r"5\text{ nope}"), ("5", r"5\text{ vs six}"), ("5", r"\text{at least: }5"),
    ("5", r"\text{5 or six}"), ("5", r"\text{5 minus one}"), ("5", r"\$5\text{ or six}"), ("B", "(b) (c)"), ("B", "b) c)"), ("A", "(a)(b)(c)(d)"), ("n!", "k!"), ("(-1)^n", "(-1)^m"), (r"\cos(n\pi)", r"\cos(k\pi)"),
    ("0", "e^{-300}"), ("5", "5+e^{-300}"), (r"-1\text{ if odd}", r"1\text{ if odd}"), (r"x-1\text{ if odd}", r"x+1\text{ if odd}"), (r"x\le 5\text{ if odd}", r"x\ge 5\text{ if odd}"),
    (r"\text{increase by }5\%", r"\text{increase by }-5"), (r"210\text{ cm}^2", r"210\,\mathrm{cm^3}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"v=\begin{pmatrix}2\\1\end{pmatrix}"),
    # too large to work out
    ("5", "9**9**9"), ("5", "9^{9^{9}}"), ("5", "(99999999)!"), ("5", r"\binom{10^9}{5\cdot10^8}"), ("5", r"\sum_{k=1}^{10^9} k"),
    ("5", r"\sqrt{2}^{9^{9^9}}"), ("5", r"x^{9^{9^9}}"), ("5", "1e999999999"), ("5", r"\prod_{k=1}^{10^8} k"), ("5", "3!!!!!"),
    # nonsense
    ("5", "?"), ("5", "{{{{"), ("5", r"\frac{1}{0}"), ("5", "__import__('os').system('touch X')"), ("5", "5 or 6"), ("5", "5, maybe 6"),
    ("5", "(" * 48 + "6" + ")" * 48), ("5", r"\text{5 or maybe 6}"), ("5", "1/0"), ("x", r"\undefined{x"), ("5", r"5\text{ or maybe 6}"), ("5", r"5\text{ or }6"), ("5", r"5\text{ or six}"), ("5", "5 not"), ("B", "(B) or (C)"), ("B", "B: or C"), ("B", "(B) (C)"), ("C", "C. or D"), ("5", r"\text{not 6: } 5"), ("5", r"\text{6 is } 5"), ("5", r"\text{either 6 or} 5"), ("5", r"5\text{ is wrong}"), ("5", "5 maybe six"), ("5", r"1\binom23.5 "), ("x^2+1", r"\inti\int\infty;"), (["7", "8"], "9"),
    # chains that are false, factors, echoes, unsolved equations, other choices
    ('7', 'a+b=7 or 8'), ('7', 'a+b+c=7, a=1'), ('5', 'f(x)=5x'), ('5', 'x+y=5=6'), ('5', r"5 \text{ or five hundred}"),
    ('2', r"x \equiv 2 \pmod 5 \text{ or } 3"), ('3', r"10 \pmod 8"), ('yes', r"\text{Yes and no}"), ('no', r"\text{No solution}"),
    ('no', r"\text{No, it is yes}"), ('yes', r"\text{yes, no, maybe}"), ('no', r"\text{no one knows}"), ('(3,4)', 'y=3,x=4'), ('(3,4)', 'x=3'),
    ('(1,2)', r"[1,2]\cap(0,3)"), ('[0,1]', r"[0,1)\cup(1,1]"), ('(0,1)', r"(0,1)\cup(5,6)"), ('12', r"1 \text{ dozen or } 13"),
    ('1200', r"12 \text{ hundredths}"), ('5', r"\text{five or six}"), ('5', r"\text{not five}"), ('5', r"\text{fifty}"),
    ('B', r"\text{Option A or B}"), ('B', r"\text{Options A and B}"), ('B', r"\text{The answer is A, not B}"), (r"\textbf{(B)}\ 5", '5, 6'),
    (r"\textbf{(B)}\ 5", '(A) 4 (B) 5'), (r"\textbf{(B)}\ 5", 'A, B'), (r"\textbf{(B)}\ 5", r"\text{B or C}"), ('3.14', r"3.15 \approx 3.14"),
    ('1', r"0.4 \approx 1"), (r"\sqrt{2}", r"\sqrt{2} \approx 1.5"), (r"\sqrt{2}", r"1.41 \approx \sqrt{2}"), ('6', r"6 \text{ (or 7)}"),
    ('6', '6; 7'), ('6', '6/1/2'), ('6', '6 7'), ('6', '67'), ('6', '{6,7}'), ('6', '6!'), ('6', '6^0'), ('10', r"\overline{10}"),
    ('AB', r"\overline{AB}+1"), ('x', "x'"), ('2', r"\dot{2}"), ('5', r"\hat{5}+1"), ('5', r"\overline{5}"), ('5', r"5 \text{ is one of many}"),
    ('5', r"5 \text{ are the solutions}, 6"), ('5', r"\text{except } 5"), ('(0,5)', r"\text{outside } (0,5)"),
    ('(0,5)', r"\text{not in the interval } (0,5)"), ('2', r"2 \text{ thousandths}"), ('-3', '|{-3}|'), ('3', r"\sqrt{9}=\pm3"), ('3', r"\pm 3"),
    ('x>2', r"x>2 \text{ or } x<0"), ('x>2', 'x>2, x<5'), ('x>2', r"x\not>2"), ('x>2', r"x \ngtr 2"), ('5', r"\neq 5"), ('5', r"\not= 5"),
    ('5', '!5'), ('5', '-(-(-5))'), ('5', r"5\cdot"), ('5', '5+'), ('5', '=5=6'), ('1/2', r"\frac{1}{2}\%"), ('0.5', '50'), (r"50\%", '5000'),
    (r"90^\circ", r"\pi/3"), ('90', r"\pi/2"), (r"\begin{pmatrix}1\\2\end{pmatrix}", '(1,2,3)'),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"0\begin{pmatrix}1\\2\end{pmatrix}"), ('abc', 'acd'), ('mgh', 'mg+h'), ('n(n+1)/2', 'n(n+1)'),
    (r"k\pi", r"k\pi, k\in\mathbb{N}, \text{ or } 0"), ('6:00', '6'), (r"6:00 \text{ p.m.}", '18'), ('1/3', '0.33...'), ('1/3', r"0.333\ldots"),
    (r"\frac13", r"0.3\overline{4}"), ('1000', '1,00,0'), ('1234', '12,34'), ('9', '3^{2}_{4}'), ('C', 'C^c'), ('A', "A'"), ('A', 'a^2'),
    ('2,3', '2,3,2'), ('2', '2,2'), ('2', r"2 \text{ and } 2"), ('x=2', 'x=2, y=2'), ('x=2', r"x\ne2"), ('x=2', r"\text{if } x=2"),
    ('5', r"5\text{ if and only if } x=2"), ('5', r"\boxed{4}"), ('5', r"\text{undefined, or }5"), ('5000', r"5\text{k}"),
    ('3', r"3 \text{ million dollars}"), ('7', r"\text{seven eleven}"), (r"2\pi", r"2 \pi r"), (r"\ln 2", r"\log 2"), ('e', '2.718281828459045'),
    ('5', r"5\text{ dozen or so}"), ('60', r"5\text{ dozen minus one}"), ('4', '2x=4'), ('4', 'x^2=4'), ('4', 'x+y=z=4=5'), ('0', 'x-y=0'),
    ('4', 'x+1=4'), ('4', '2a+2b=8'), ('4', 'a+b=2^2+1'), ('4', r"\log(x)=4"), ('4', r"\sqrt{x}=4"), ('4', 'n!=4'),
    ("x=1,y=2", "2,1"), ("2,1", "x=1,y=2"), ("2", "3x-y=2"), ("{3,4}", "3 4"), ("3,4", "3 4 5"),
    (r"\frac{1}{2}", r"\frac{1}{2}mgh"), ("5", "5abc"), ("5", "5 mgh"), ("0", r"\binom{3}{10}x+1"),
    ("5", "(((x!)!)!)!"), ("5", r"\cup1"),
]  # fmt: skip


def test_the_table_is_as_long_as_promised():
    assert len(RIGHT) + len(WRONG) >= 200


@pytest.mark.parametrize(("gold", "box"), RIGHT, ids=[f"{gold} <- {box}"[:60] for gold, box in RIGHT])
def test_right_answers_are_right(gold, box):
    verdict = math_answer(rf"Therefore \boxed{{{box}}}.", gold)
    assert verdict.outcome == "right", verdict


@pytest.mark.parametrize(("gold", "box"), WRONG, ids=[f"{gold} <- {box}"[:60] for gold, box in WRONG])
def test_wrong_answers_earn_nothing(gold, box):
    started = time.perf_counter()
    verdict = math_answer(rf"Therefore \boxed{{{box}}}.", gold)
    assert verdict.reward == 0.0, verdict
    assert verdict.outcome in ("wrong", "unparseable")
    assert time.perf_counter() - started < 60, "sized before it is worked out"


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (r"\boxed{5} wait, \boxed{6}", True),
        (r"First \boxed{5}. Hmm, recheck: it is 6. Therefore the final answer is \boxed{6}.", True),
        (r"\boxed{6} or is it \boxed{5}", False),
        (r"\boxed{6}, although one may think of 5", True),
        (r"<think>\boxed{5}</think> \boxed{6}", True),
        (r"<think>\boxed{6}</think> I do not know", False),
        (r"<think>\boxed{6}", False),
        (r"<think>a</think> so <think> \boxed{6}", False),
        (r"<think>a</think> \boxed{6} <think> or \boxed{5}", True),
        (r"\boxed{6", False),
        (r"\boxed{6} and \boxed{5", True),
        (r"\boxed 6", True),
        (r"\fbox{6}", True),
        (r"\boxed{\boxed{6}}", True),
        (r"the answer is 6", False),
        (r"<answer>\boxed{6}</answer>", True),
        ("", False),
        (r"\boxed{}", False),
    ],
)
def test_the_last_closed_box_after_the_thinking_is_the_answer(response, right):
    from verigrad.verifiers.base import Attempt

    verdict = math_answer(Attempt(response).final_text, "6")
    assert (verdict.reward == 1.0) is right, verdict


@pytest.mark.parametrize(
    ("response", "extract", "right"),
    [
        ("<answer>6</answer>", "answer_tag", True),
        ("<answer>5</answer><answer> 6 </answer>", "answer_tag", True),
        ("Answer: 6", "answer_tag", True),
        ("The final answer is 6.", "answer_tag", True),
        ("it is 6", "answer_tag", False),
        (r"<answer>5</answer> \boxed{6}", "answer_tag", True),
        ("it is 5 + 1 so 6.", "last_number", True),
        ("6 and then 5", "last_number", False),
        ("it costs 6.00 dollars", "last_number", True),
    ],
)
def test_other_places_of_the_answer_are_options(response, extract, right):
    assert (math_answer(response, "6", extract=extract).reward == 1.0) is right


@pytest.mark.parametrize(
    ("gold", "box", "right"),
    [
        ("5050", r"\sum_{k=1}^{100} k", False),
        ("391", r"17\cdot 23", False),
        ("391", "17(23)", False),
        ("1024", "2^{10}", False),
        ("120", "5!", False),
        ("5", "2+3", False),
        ("1", "3-2", False),
        ("391", "391", True),
        ("1/2", r"\frac{1}{2}", True),
        ("602000", r"6.02\times 10^5", True),
        ("x^2+1", "1+x^2", True),
        (r"2^{10}", "2^{10}", True),
    ],
)
def test_require_simplified_rejects_a_restated_question(gold, box, right):
    assert (math_answer(rf"\boxed{{{box}}}", gold, require_simplified=True).reward == 1.0) is right


@pytest.mark.parametrize(
    "gold", [None, "", r"\frac{1}{", True, {"a": 1}, ["5", None], "5 + ", "9^{9^{9}}", "f'(x)", "A^T"]
)
def test_an_answer_of_ours_that_cannot_be_read_decides_nothing(gold):
    verdict = math_answer(r"\boxed{5}", gold)
    assert verdict.reward is None
    assert verdict.outcome == "error"


def test_the_reason_does_not_tell_the_right_answer():
    assert "271828" not in math_answer(r"\boxed{5}", "271828").reason


def test_a_megabyte_of_braces_is_walked_once():
    started = time.perf_counter()
    assert last_box(r"\boxed{" * 150_000) is None
    assert last_box("{" * 1_000_000) is None
    assert last_box(r"\boxed{" * 20_000 + "}" * 20_000) == ""
    assert time.perf_counter() - started < 20


def test_equality_is_symmetric_for_values_without_units():
    for one, other in [(r"\sqrt{12}", r"2\sqrt{3}"), ("0.5", r"\frac12"), ("x<2", r"(-\infty,2)")]:
        assert same_value(one, other)
        assert same_value(other, one)


@pytest.mark.parametrize(
    "name", ["a" * 200 + "1", "the number of ways to choose from twelve of them 3", '"x"' * 60]
)
def test_a_long_name_is_read_in_one_way_only(name):
    started = time.perf_counter()
    math_answer(rf"\boxed{{{name} = 5}}", "5")
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{2}{4}", "0.5"), (r"50\%", "1/2"), (r"\sqrt{12}", r"2\sqrt{3}"), ("x=5", "5"), ("2,1", "1,2"), ("1,000", "10^3"),
        (r"5\text{ cm}", "5"), (r"[1,2]\cup[2,4]", "[1,4]"), ("(x+1)^2", "(1+x)^2"), (r"\text{Yes}", "yes"), ("2<x<3", "(2,3)"),
        ("y=2, x=1", "x=1, y=2"), (r"10 \pmod 7", "10"), (r"5\text{ dozen}", "60"),
    ],
)  # fmt: skip
def test_equal_answers_read_the_same(one, other):
    read = [math_answer(rf"\boxed{{{answer}}}", "0").extracted for answer in (one, other)]
    assert read[0] == read[1] != ""


def test_what_is_no_answer_reads_as_nothing():
    assert math_answer("no box", "5").extracted == ""
    assert math_answer(r"\boxed{5+}", "5").extracted == ""
    assert math_answer(r"\boxed{5}", "A^T").extracted == ""  # undecided


def test_other_answers_read_otherwise():
    answers = [
        "1/2",
        "2",
        "-2",
        "{1}",
        "(1,2)",
        "[1,2]",
        "[1,2)",
        "1,2",
        "x",
        "y",
        "x^2",
        "yes",
        "no",
        r"\sqrt{2}",
        "1:2",
    ]
    read = [math_answer(rf"\boxed{{{answer}}}", "0").extracted for answer in answers]
    assert len(set(read)) == len(answers)


@pytest.mark.parametrize(
    "text",
    [
        "in" * 1900, "for all " + "in" * 1900, "for all " + "i " * 1900, '"' * 3900, r"\text{" * 600, r"\phantom{" * 500,
        "5 " + "hundred " * 400, "mod " * 900, "]" * 3900, r"[1,2]\cup" * 400, r"1\approx " * 400, '"a,' * 1300,
        r"{5 \choose " * 300, "_5C_3" * 700, "|x-1|<2 or " * 300, r"\frac{1}{2}\begin{pmatrix}" * 100, "x = " + "1 = " * 400 + "1",
    ],
)  # fmt: skip
def test_long_texts_are_read_in_little_time(text):
    for gold in ("5", "x=5", "A, C", "yes", r"\textbf{(B)}\ 5"):
        started = time.perf_counter()
        assert math_answer(rf"\boxed{{{text}}}", gold).reward == 0.0
        assert time.perf_counter() - started < 20
