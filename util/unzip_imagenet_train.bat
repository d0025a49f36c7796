@echo off
rem ImageNet on Windows. Double-clicked beside a folder ILSVRC2012_img_train of archives n########.tar, or beside
rem ILSVRC2012_img_train.tar, it unpacks them into the folder ImageNet there. With arguments it is unzip_imagenet.
setlocal
set "HERE=%~dp0"
if not exist "%HERE%unzip_imagenet" (
    echo This file calls unzip_imagenet of the folder util that it comes with. Leave it there, and give it the folder:
    echo util\unzip_imagenet_train.bat FOLDER
    pause
    exit /b 2
)
rem not every Python brings the launcher py
set PYTHON=python
where /q py && set PYTHON=py
if exist "%HERE%..\.venv\Scripts\python.exe" set PYTHON="%HERE%..\.venv\Scripts\python.exe"
if not "%~1"=="" goto words
if exist "ILSVRC2012_img_train\" (
    %PYTHON% "%HERE%unzip_imagenet" ILSVRC2012_img_train --out ImageNet
) else if exist "ILSVRC2012_img_train.tar" (
    %PYTHON% "%HERE%unzip_imagenet" ILSVRC2012_img_train.tar --out ImageNet
) else (
    %PYTHON% "%HERE%unzip_imagenet"
)
set CODE=%ERRORLEVEL%
pause
exit /b %CODE%

rem in no block: the ) of a word such as train(1).tar would end it
:words
%PYTHON% "%HERE%unzip_imagenet" %*
exit /b %ERRORLEVEL%
